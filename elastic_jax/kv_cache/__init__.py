"""Key/value caches of generation."""

from elastic_jax.kv_cache.config import CacheConfig as CacheConfig
from elastic_jax.kv_cache.dense import DenseCache as DenseCache

"""Key/value caches of generation. Only the settings are imported here: the command line needs them without jax."""

from elastic_jax.kv_cache.config import CacheConfig

__all__ = ["CacheConfig"]

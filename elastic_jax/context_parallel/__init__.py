"""The attention ops under a mesh: rows, heads and tokens divided over devices."""

from elastic_jax.context_parallel.attention import dual_attention, hybrid_attention, routed_attention, select_blocks
from elastic_jax.context_parallel.division import context_size

__all__ = ["context_size", "dual_attention", "hybrid_attention", "routed_attention", "select_blocks"]

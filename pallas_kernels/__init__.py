"""Attention kernels: arrays in, arrays out, no knowledge of any model."""

from pallas_kernels.block_selection.api import select_blocks
from pallas_kernels.dual_attention.api import dual_attention, routed_attention
from pallas_kernels.hybrid_attention.api import hybrid_attention

__all__ = ["dual_attention", "hybrid_attention", "routed_attention", "select_blocks"]

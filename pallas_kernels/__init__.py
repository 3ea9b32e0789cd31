"""Attention kernels: arrays in, arrays out, no knowledge of any model."""

from pallas_kernels.block_selection.api import select_blocks
from pallas_kernels.call import AttentionCall, check_attention, check_rows
from pallas_kernels.decode_attention.api import decode_attention
from pallas_kernels.decode_attention.view import CacheView, Pages, fold_query_heads, unfold_query_heads
from pallas_kernels.dual_attention.api import dual_attention, routed_attention
from pallas_kernels.hybrid_attention.api import hybrid_attention
from pallas_kernels.kv_quant.api import dequantize_group, pack, quantize_group, unpack

__all__ = [
    "AttentionCall",
    "CacheView",
    "Pages",
    "check_attention",
    "check_rows",
    "decode_attention",
    "dequantize_group",
    "dual_attention",
    "fold_query_heads",
    "hybrid_attention",
    "pack",
    "quantize_group",
    "routed_attention",
    "select_blocks",
    "unfold_query_heads",
    "unpack",
]

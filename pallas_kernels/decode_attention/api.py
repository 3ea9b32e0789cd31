"""Public entry of decode attention: checks, then dispatch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.call import attention_spec, check_choice
from pallas_kernels.decode_attention.reference import decode_attention_reference
from pallas_kernels.decode_attention.view import CacheView
from pallas_kernels.decode_attention.xla import decode_attention_xla
from pallas_kernels.dispatch import choose, compiled, deferred

IMPLEMENTATIONS = {
    "reference": decode_attention_reference,
    "xla": decode_attention_xla,
    "tpu": deferred("pallas_kernels.decode_attention.tpu", "decode_attention_tpu"),
    "triton": deferred("pallas_kernels.decode_attention.triton", "decode_attention_triton"),
}
REFUSALS = {name: deferred(f"pallas_kernels.decode_attention.{name}", "why_not") for name in ("tpu", "triton")}
MAX_QUERIES = 8


def decode_attention(
    q_BTNH: jax.Array,
    view: CacheView,
    position_B: jax.Array,
    mode: jax.Array,
    *,
    sink_blocks: int = 1,
    local_blocks: int = 16,
    block_size: int = 128,
    window: int | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> jax.Array:
    """Attention of a few queries of each row over a quantised cache: one softmax over groups and exact tokens.

    Sparse heads see sinks and local blocks by the rule of `hybrid_attention`. Scores and softmax are float32.

    Args:
        q_BTNH: queries `[B, T, N, H]`, T from 1 to 8, at consecutive positions. Their own tokens are in the cache.
        view: one layer of the cache.
        position_B: int `[B]`, position of the first query of each row.
        mode: int or bool `[B, K]`: 0 full, 1 sparse.
        sink_blocks: leading blocks that a sparse head always sees.
        local_blocks: last blocks, the query's own included, that a sparse head sees.
        block_size: tokens in a block; need not be the group of the cache.
        window: every head sees only the last `window` tokens.
        scale: factor of the scores; 1 / sqrt(H) by default.
        impl: "auto" takes the best for the platform; or "reference", "xla", "tpu" (groups of a multiple of 128 tokens)
            or "triton" (NVIDIA GPUs from compute capability 8.0, groups of a power of two).

    Returns:
        `[B, T, N, H]` in the type of q.

    Raises:
        ValueError: a shape or an option that does not fit.
        NotImplementedError: `impl` does not serve the case.
        RuntimeError: `impl` is for a device that is not there.
    """
    _check(q_BTNH, view, position_B)
    view = _with_a_group(view)
    B, K = view.table_BKJ.shape[:2]
    check_choice("mode", mode, B, K, packed=False)
    spec = attention_spec(
        q_BTNH.shape[3],
        sink_blocks=sink_blocks,
        local_blocks=local_blocks,
        block_size=block_size,
        window=window,
        scale=scale,
    )

    def serves(name: str) -> bool:
        return name not in REFUSALS or REFUSALS[name](q_BTNH, view) is None

    attend = compiled(choose("decode_attention", impl, IMPLEMENTATIONS, serves), (4,))
    return attend(q_BTNH, view, position_B, mode != 0, spec)


def _check(q: jax.Array, view: CacheView, position: jax.Array) -> None:
    if q.ndim != 4 or 0 in q.shape or not jnp.issubdtype(q.dtype, jnp.floating):
        raise ValueError(f"q is {q.dtype}{q.shape}; wanted floating [batch, queries, heads, head_dim], none empty.")
    B, T, N, H = q.shape
    if T > MAX_QUERIES:
        raise ValueError(f"{T} queries; wanted at most {MAX_QUERIES}. Use hybrid_attention for prompts.")
    K, E = view.exact_k_BKEH.shape[1:3]
    if N % K:
        raise ValueError(f"q has {N} heads and the cache {K}; query heads must be a multiple of KV heads.")
    for name, x, wanted in (
        ("exact_k", view.exact_k_BKEH, (B, K, E, H)),
        ("exact_v", view.exact_v_BKEH, (B, K, E, H)),
        ("exact_pos", view.exact_pos_BKE, (B, K, E)),
        ("table", view.table_BKJ, (B, K, view.table_BKJ.shape[-1])),
        ("quantized", view.quantized_B, (B,)),
        ("position", position, (B,)),
        ("pages.k_codes", view.pages.k_codes, (*view.pages.v_codes.shape[:2], H)),
    ):
        if x.shape != wanted:
            raise ValueError(f"{name} has shape {x.shape}; wanted {wanted} for queries of shape {q.shape}.")
    if not isinstance(view.quantized_B, jax.core.Tracer):
        held, group = np.asarray(view.quantized_B), view.pages.group
        most = view.table_BKJ.shape[-1] * group
        if ((held < 0) | (held > most) | (held % group != 0)).any():
            raise ValueError(f"quantized is {held.tolist()}; wanted multiples of the group {group}, 0 to {most}.")


def _with_a_group(view: CacheView) -> CacheView:
    """The view with one group at least, which no query sees: loops over groups cannot have none to take from."""
    pages, table, quantized = view.pages, view.table_BKJ, view.quantized_B
    if pages.k_codes.shape[0] == 0:
        pages = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), pages)
        quantized = jnp.zeros_like(quantized)
    if table.shape[-1] == 0:
        table, quantized = jnp.zeros((*table.shape[:2], 1), table.dtype), jnp.zeros_like(quantized)
    return view._replace(pages=pages, table_BKJ=table, quantized_B=quantized)

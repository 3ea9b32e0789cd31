"""Dense causal attention by other hands: what our kernels are measured against, as far as the machine has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, util
from typing import Any

import jax
import jax.numpy as jnp

from eval.bench.work import HeadShape

LARGEST_TPU_TILE, INNER_TPU_TILE = 1024, 512
"""Tokens of a tile and of the piece of it that is computed at once: the best by the compiler's estimate for v6e."""


@dataclass(frozen=True)
class DenseKernel:
    """One implementation. `prepare` brings `[B, T, heads, H]` operands into its layout, outside of the timing."""

    name: str
    attend: Callable[..., Any]
    prepare: Callable[..., Any] = lambda *operands: operands
    least_bytes: int = 0
    """Memory that it certainly takes: a program of absurd size is not compiled, the compiler may not survive it."""


def dense_kernels(platform: str, shape: HeadShape, tokens: int) -> list[DenseKernel]:
    """The kernels that `platform` ("cpu", "gpu" or "tpu") offers for one row of causal attention."""
    standard = partial(jax.nn.dot_product_attention, is_causal=True)
    scores = 4 * shape.query_heads * tokens**2
    kernels = [DenseKernel("jax.nn, XLA", partial(standard, implementation="xla"), least_bytes=scores)]
    if platform == "gpu":
        kernels.append(DenseKernel("jax.nn, cuDNN", partial(standard, implementation="cudnn")))
    if platform != "cpu" and util.find_spec("tokamax") is not None:
        attend = import_module("tokamax").dot_product_attention
        kernels.append(DenseKernel("tokamax", partial(attend, is_causal=True)))
    if platform == "tpu":
        kernels += [_flash(shape, tokens), _splash(shape, tokens)]
    return kernels


def _tile(tokens: int) -> int:
    """The largest tile that divides the sequence; wider tiles than the kernels' defaults keep a TPU much busier."""
    return next((tile for tile in (LARGEST_TPU_TILE, 512, 256) if tokens % tile == 0), 128)


def _flash(shape: HeadShape, tokens: int) -> DenseKernel:
    """The flash attention that ships with jax. It has no grouped heads: keys and values are repeated beforehand."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

    tile = _tile(tokens)
    sizes = BlockSizes(
        block_q=tile,
        block_k_major=tile,
        block_k=min(tile, INNER_TPU_TILE),
        block_b=1,
        block_q_major_dkv=tile,
        block_k_major_dkv=tile,
        block_k_dkv=min(tile, INNER_TPU_TILE),
        block_q_dkv=min(tile, INNER_TPU_TILE),
        block_k_major_dq=tile,
        block_k_dq=min(tile, INNER_TPU_TILE),
        block_q_dq=tile,
    )

    def prepare(q_BTNH: jax.Array, *keys_and_values: jax.Array) -> tuple[jax.Array, ...]:
        repeated = (jnp.repeat(x, shape.groups, axis=2) for x in keys_and_values)
        return tuple(jnp.swapaxes(x, 1, 2) for x in (q_BTNH, *repeated))

    attend = partial(flash_attention, causal=True, sm_scale=shape.head_dim**-0.5, block_sizes=sizes)
    return DenseKernel("flash (jax)", attend, prepare)


def _splash(shape: HeadShape, tokens: int) -> DenseKernel:
    """The splash attention that ships with jax, one call for each KV head."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tile = _tile(tokens)
    sizes = splash.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=min(tile, INNER_TPU_TILE),
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=min(tile, INNER_TPU_TILE),
        block_q_dq=tile,
        block_kv_dq=tile,
    )
    mask = splash.MultiHeadMask([splash.CausalMask((tokens, tokens))] * shape.groups)

    def attend(q_KGTH: jax.Array, k_KSH: jax.Array, v_KSH: jax.Array) -> Any:
        kernel = splash.make_splash_mqa_single_device(mask, block_sizes=sizes)
        return jax.vmap(kernel)(q_KGTH * shape.head_dim**-0.5, k_KSH, v_KSH)

    def prepare(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> tuple[jax.Array, ...]:
        q_NTH = jnp.swapaxes(q_BTNH[0], 0, 1)
        k_KSH, v_KSH = (jnp.swapaxes(x[0], 0, 1) for x in (k_BSKH, v_BSKH))
        return q_NTH.reshape(shape.kv_heads, shape.groups, *q_NTH.shape[1:]), k_KSH, v_KSH

    return DenseKernel("splash (jax)", attend, prepare)

"""Text generation: bucketed prefill that decides the routing, then one jitted decode loop that keeps it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.config import HeadMode, ModelConfig
from elastic_jax.errors import NumericsError, ShapeError
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.dense import DenseCache
from elastic_jax.kv_cache.pages import plan_pages
from elastic_jax.kv_cache.quantized import QuantizedCache
from elastic_jax.kv_cache.size import check_limit, quantized_bytes
from elastic_jax.layout import check_prompts, pad_rows, token_ids, whole_number
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.program import model_program
from elastic_jax.rope import rope_tables
from elastic_jax.routing import Gates, Imposed, Routing, check_router_bias, to_modes
from elastic_jax.sampling import RowSampling, Sampling, next_token
from elastic_jax.settings import check_seed

Cache = DenseCache | QuantizedCache


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds; the first call at a new shape includes its compilation."""

    prefill_s: float
    decode_s: float


@dataclass(frozen=True)
class Generation:
    """What `generate` returns.

    `tokens` int32 `[B, max_new_tokens]`, filled with the pad id after a stop token; `lengths` `[B]` counts the
    generated tokens, a stop token included; `cache_bytes` is what the cache really allocated.
    """

    tokens: jax.Array
    lengths: jax.Array
    routing: Routing
    cache_bytes: int
    timings: Timings


def generate(
    model: ElasticForCausalLM,
    input_ids_BT: jax.Array,
    *,
    lengths: jax.Array | None = None,
    max_new_tokens: int,
    cache: CacheConfig | None = None,
    sampling: Sampling | None = None,
    routing: Imposed | None = None,
    router_bias: float = 0.0,
    stop_tokens: Sequence[int] | None = None,
    seed: int = 0,
    cache_mib: float | None = None,
) -> Generation:
    """Continues prompts. Routing is decided once per row, from its prompt or by calibrated heads, and kept.

    Args:
        input_ids_BT: right-padded prompts `[B, T]`.
        lengths: tokens of each prompt `[B]`; default T for every row.
        max_new_tokens: how many tokens to add at most.
        cache: what the cache keeps and what sparse heads read while decoding.
        sampling: greedy by default.
        routing: see `ElasticForCausalLM.__call__`.
        router_bias: positive favours full attention, negative sparse.
        stop_tokens: ids that end a row; default the end-of-sequence ids of the checkpoint.
        seed: of the sampling, 0 to 2**31 - 1.
        cache_mib: most mebibytes that the cache may take. A request that might need more is refused before any work:
            heads count as full where the routers decide, as they do so during the work.

    Raises:
        ShapeError: an empty prompt, a row of length 0, or more tokens than the model has positions.
        ConfigError: the cache cannot hold heads of this size in its groups, or not the request within its limit; a seed
            out of range.
        NumericsError: logits that are NaN or infinite, with the layer where they come from.
    """
    cache, sampling = cache or CacheConfig(), sampling or Sampling()
    config = model.config
    cache.check_head_dim(config.head_dim)
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens)
    if max_new_tokens < 1:
        raise ShapeError(f"max_new_tokens is {max_new_tokens}; want 1 or more.")
    check_seed(seed)
    check_router_bias(router_bias)
    ids, lengths_B = check_prompts(config, input_ids_BT, lengths, max_new_tokens)
    B, T = ids.shape
    model, gates = model.resolved(routing, B)
    if cache_mib is not None:
        _check_cache_limit(cache_mib, model, cache, lengths_B, gates, max_new_tokens)
    stops = _stop_array(end_ids(config) if stop_tokens is None else token_ids("stop_tokens", stop_tokens))

    start = time.perf_counter()
    padded = jnp.asarray(np.pad(ids, ((0, 0), (0, bucket(T) - T))))
    kv, logits_BV, routing = prefill(model, padded, jnp.asarray(lengths_B), gates, jnp.float32(router_bias))
    state = make_cache(cache, config, kv, lengths_B, routing.mode, max_new_tokens)
    del kv
    jax.block_until_ready((logits_BV, state))
    prefill_s = time.perf_counter() - start

    start = time.perf_counter()
    state, tokens, counts, finite_B = decode(
        model,
        state,
        logits_BV,
        jax.random.key(seed),
        stops,
        RowSampling.of(sampling),
        jnp.int32(max_new_tokens),
        jnp.int32(pad_id(config)),
        width=bucket(max_new_tokens),
    )
    # On the host: a slice on the device would be a program for every length.
    tokens = jax.device_put(np.asarray(tokens)[:, :max_new_tokens])
    if not np.asarray(finite_B).all():
        row = int(np.argmin(np.asarray(finite_B)))
        told = [*ids[row, : lengths_B[row]], *np.asarray(tokens[row, : counts[row] - 1])]
        row_gates = None if gates is None else dataclasses.replace(gates, z=gates.z[:, row : row + 1])
        raise not_finite(model, told, row_gates, f"row {row}: logits")
    return Generation(tokens, counts, routing, state.nbytes, Timings(prefill_s, time.perf_counter() - start))


def bucket(tokens: int) -> int:
    """The padded length for `tokens`: a multiple of 128 and of an eighth of its power of two, so at most eight
    shapes are compiled per doubling and little is wasted."""
    step = max(128, 1 << max(tokens.bit_length() - 4, 0))
    return -(-tokens // step) * step


class Prefilled(NamedTuple):
    """Prompts that were read, from which `make_cache` fills a cache of any kind."""

    kv: tuple[jax.Array, jax.Array]
    """Rotated keys and values, each `[L, B, T, K, H]`."""
    logits_BV: jax.Array
    """After the last token of each prompt."""
    routing: Routing


@model_program
def prefill(
    model: ElasticForCausalLM,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    gates: Gates | None,
    router_bias: jax.Array | float = 0.0,
) -> Prefilled:
    """Reads right-padded prompts; without gates the routers decide."""
    out = model.hidden(ids_BT, lengths=lengths_B, gates=gates, router_bias=router_bias, return_kv=True)
    last_BD = jnp.take_along_axis(out.hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    assert out.kv is not None
    return Prefilled(out.kv, model.head(last_BD), out.routing)


def make_cache(
    cache: CacheConfig,
    config: ModelConfig,
    kv: tuple[jax.Array, jax.Array],
    lengths_B: np.ndarray,
    mode_LBK: jax.Array,
    new_tokens: int,
) -> Cache:
    """The cache of prompts whose keys and values are `kv`, with room for `new_tokens` more in every row."""
    mode_LBK = decode_modes(mode_LBK, cache, config)
    spec, lengths = config.attention_spec, jnp.asarray(lengths_B)
    if cache.bits == 16:
        capacity = bucket(int(lengths_B.max()) + new_tokens)
        return _dense_cache(kv, lengths, mode_LBK, capacity=capacity, spec=spec)
    plan = plan_pages(np.asarray(mode_LBK), lengths_B + new_tokens, cache, spec)
    return QuantizedCache.from_prefill(kv, lengths, mode_LBK, plan, cache, spec)


def decode_modes[M: (jax.Array, np.ndarray)](mode: M, cache: CacheConfig, config: ModelConfig) -> M:
    """What the heads see while decoding, and so what the cache keeps of them: `mode`, or all of it for every head.

    Heads that choose their blocks by content (XA) do so for whole blocks of queries, in prefill; they decode over all.
    """
    sparse = cache.sparse_decode and config.router.pattern != "fa-xa"
    return mode if sparse else mode * int(HeadMode.FULL)


_dense_cache = jax.jit(DenseCache.from_prefill, static_argnames=("capacity", "spec"))


def decode_step(model: ElasticForCausalLM, state: Cache, token_B: jax.Array) -> tuple[Cache, jax.Array]:
    """Feeds one token per row: the grown cache and the next float32 logits `[B, V]`."""
    state, logits_B1V = read_tokens(model, state, token_B[:, None])
    return state.advance(), logits_B1V[:, 0]


def read_tokens(
    model: ElasticForCausalLM, state: Cache, tokens_BT: jax.Array, counts_B: jax.Array | None = None
) -> tuple[Cache, jax.Array]:
    """Reads the next tokens of every row: a cache that holds but does not count them, float32 logits `[B, T, V]`.

    Where `counts_B` is given, a row has that many tokens, 0 to T, and the rest of its logits means nothing. A cache
    below 16 bits takes up to 8 tokens, and no more than the ring of a row has places for.
    """
    config = model.config
    position = state.lengths[:, None] + jnp.arange(tokens_BT.shape[1])[None]
    rope = rope_tables(config, position, position + 1)
    graph, stacked = nnx.split(model.layers)

    def step(carry: tuple[jax.Array, Cache], xs: tuple) -> tuple[tuple[jax.Array, Cache], None]:
        x_BTD, state = carry
        weights, index = xs

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Cache]:
            q, k = rope.rotate(index, q, k)
            written = state.write(index, k, v, counts_B)
            return written.attend(index, q, counts_B), written

        return nnx.merge(graph, weights)(x_BTD, attend), None

    (x_BTD, state), _ = jax.lax.scan(step, (model.embed(tokens_BT), state), (stacked, jnp.arange(config.num_layers)))
    return state, model.head(model.norm(x_BTD))


@partial(model_program, static=("width",), donate=(0,))
def decode(
    model: ElasticForCausalLM,
    state: Cache,
    logits_BV: jax.Array,
    key: jax.Array,
    stops: jax.Array,
    sampling: RowSampling,
    max_new_tokens: jax.Array,
    pad_id: jax.Array,
    *,
    width: int,
) -> tuple[Cache, jax.Array, jax.Array, jax.Array]:
    """Continues every row until all have stopped.

    All settings are arrays, so that one program serves all of their values; `width`, at least `max_new_tokens`, is not.

    Returns:
        The cache, grown in place; tokens `[B, width]`; tokens of each row; and whether the logits of each row were
        finite. A row stops at the first token whose logits are not.
    """
    B = logits_BV.shape[0]

    def choose(logits_BV: jax.Array, i: jax.Array, done_B: jax.Array, tokens: jax.Array, finite_B: jax.Array) -> tuple:
        token_B = jnp.where(done_B, pad_id, next_token(logits_BV, jax.random.fold_in(key, i), sampling))
        finite_B = finite_B & (done_B | jnp.isfinite(logits_BV).all(-1))
        stopped = done_B | (token_B[:, None] == stops[None]).any(-1) | ~finite_B
        return token_B, stopped, tokens.at[:, i].set(token_B), finite_B

    def more(carry: tuple) -> jax.Array:
        i, done_B = carry[0], carry[3]
        return (i < max_new_tokens) & ~done_B.all()

    def step(carry: tuple) -> tuple:
        i, state, token_B, done_B, tokens, finite_B, counts = carry
        state, logits_BV = decode_step(model, state, token_B)
        counts = counts + (~done_B).astype(counts.dtype)
        token_B, done_B, tokens, finite_B = choose(logits_BV, i, done_B, tokens, finite_B)
        return i + 1, state, token_B, done_B, tokens, finite_B, counts

    tokens = jnp.full((B, width), pad_id, jnp.int32)
    none, every = jnp.zeros((B,), bool), jnp.ones((B,), bool)
    token_B, done_B, tokens, finite_B = choose(logits_BV, jnp.int32(0), none, tokens, every)
    start = (jnp.int32(1), state, token_B, done_B, tokens, finite_B, jnp.ones((B,), jnp.int32))
    _, state, *_, tokens, finite_B, counts = jax.lax.while_loop(more, step, start)
    return state, tokens, counts, finite_B


def not_finite(model: ElasticForCausalLM, ids: Sequence[int], gates: Gates | None, what: str) -> NumericsError:
    """The error for results, named by `what`, that are NaN or infinite after the tokens `ids`.

    It names the first layer that gives such numbers, the dtype, and the remedy.
    """
    config, dtype = model.config, model.embed.embedding[...].dtype.name
    row, lengths = map(jnp.asarray, pad_rows([ids[:_SEARCHED]], bucket(min(len(ids), _SEARCHED))))
    finite = np.asarray(_finite_layers(model, row, lengths, gates)).tolist()
    if all(finite):
        place = "all layers are finite when the tokens are read at once, so the cache or a later token overflows"
    else:
        first = finite.index(False)
        place = "the embedding" if first == 0 else f"layer {first - 1} of {config.num_layers}, counted from 0,"
        place = "the vocabulary head" if first > config.num_layers else place
        place = f"{place} gives the first such number"
    remedy = 'Load the model with dtype "bfloat16" or "float32", which reach further.'
    if dtype != "float16":
        remedy = 'Check the checkpoint for NaN or damaged weights, or load it with dtype "float32".'
    return NumericsError(
        f"{what} after {len(ids)} tokens: NaN or infinity in {dtype}; {place}. Want finite numbers. {remedy}"
    )


_SEARCHED = 8192
"""Tokens that are searched for the first layer that is not finite."""


@model_program
def _finite_layers(
    model: ElasticForCausalLM, ids_BT: jax.Array, lengths_B: jax.Array, gates: Gates | None
) -> jax.Array:
    """Whether the embedding, the output of every layer, and the logits are finite, bool `[L + 2]`."""
    out = model.hidden(ids_BT, lengths=lengths_B, gates=gates, return_layers=True)
    assert out.layers is not None
    valid_BT1 = (jnp.arange(ids_BT.shape[1])[None] < lengths_B[:, None])[..., None]
    layers_L = (jnp.isfinite(out.layers) | ~valid_BT1[None]).all((1, 2, 3))
    last_BD = jnp.take_along_axis(out.hidden_BTD, (lengths_B - 1)[:, None, None], axis=1)[:, 0]
    return jnp.append(layers_L, jnp.isfinite(model.head(last_BD)).all())


def _check_cache_limit(
    limit_mib: float,
    model: ElasticForCausalLM,
    cache: CacheConfig,
    lengths_B: np.ndarray,
    gates: Gates | None,
    new_tokens: int,
) -> None:
    config, itemsize = model.config, model.head_kernel().dtype.itemsize
    B, L, K, H = len(lengths_B), config.num_layers, config.num_kv_heads, config.head_dim
    mode_LBK = np.full((L, B, K), HeadMode.FULL, np.int8)
    if gates is not None:
        mode_LBK = decode_modes(np.asarray(to_modes(gates.z)), cache, config)
    longest_first = np.argsort(-lengths_B)
    lengths_B, mode_LBK = lengths_B[longest_first] + new_tokens, mode_LBK[:, longest_first]

    def bytes_of(cache: CacheConfig, rows: int, tokens: int) -> int:
        if cache.bits == 16:
            return 2 * L * rows * K * bucket(tokens) * H * itemsize
        lengths = np.minimum(lengths_B[:rows], tokens)
        return quantized_bytes(mode_LBK[:, :rows], lengths, H, itemsize, cache, config.attention_spec)

    check_limit(limit_mib, cache, bytes_of, B, int(lengths_B[0]))


def _stop_array(stop_tokens: Sequence[int]) -> jax.Array:
    """Stop tokens, filled up with -1 to a multiple of 8: lists of most lengths share a program."""
    return jnp.asarray([*stop_tokens, *[-1] * (-len(stop_tokens) % 8 if len(stop_tokens) else 8)], jnp.int32)


def pad_id(config: ModelConfig) -> int:
    """What fills rows behind their last token: the pad id of the checkpoint, or 0 where it names no token."""
    pad = config.hf_extra.get("pad_token_id")
    return pad if isinstance(pad, int) and 0 <= pad < config.vocab_size else 0


def end_ids(config: ModelConfig) -> list[int]:
    """End-of-sequence ids of the checkpoint."""
    ids = config.hf_extra.get("eos_token_id")
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

"""Several continuations of one prompt, with the prompt computed once.

A row of preference data is a long prompt and 1 + V short responses. Each response attends to the prompt and to itself,
so the prompt's keys and values serve all of them, in the backward pass too: the work is that of one prompt instead of
1 + V, and values and gradients are those of separate sequences.

Responses run as rows of their own. Sparse heads count blocks from the start of the sequence, so a row begins with the
prompt's last block (1 to `block_size` tokens, computed again in each row) and its keys are the blocks before it, moved
to end where the row begins. Letters: P prompt tokens, V responses of a prompt, R response tokens, T tokens of such a
row.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ConfigError
from elastic_jax.layout import make_layout
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.rope import rope_tables
from elastic_jax.router import argmax_gates, pool_keys, pooling_weights
from elastic_jax.routing import Gates, Imposed, Routing, to_modes
from elastic_jax.sharding.attention import on_mesh
from pallas_kernels import hybrid_attention

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class SharedPrefix(NamedTuple):
    """Normed hidden states and the routing, which follows from the prompt alone.

    `hidden` `[B, V, R + 1, D]`: index 0 is the prompt's last token, index i the i-th token of the response, so that
    index i predicts token i + 1; after the end of a response the values have no meaning.
    """

    hidden: jax.Array
    routing: Routing


def shared_prefix_hidden(
    model: ElasticForCausalLM,
    prompts_BP: jax.Array,
    prompt_lengths_B: jax.Array,
    responses_BVR: jax.Array,
    response_lengths_BV: jax.Array,
    *,
    routing: Imposed | None = None,
    router_bias: float | jax.Array = 0.0,
    remat: bool = False,
) -> SharedPrefix:
    """Runs prompts once and every response over them.

    Args:
        prompts_BP: right-padded token ids; P a multiple of the block size.
        prompt_lengths_B: 1 or more tokens each.
        responses_BVR: right-padded token ids.
        response_lengths_BV: tokens of each response; 0 for one that is not there.
        routing, router_bias: as for `ElasticForCausalLM`, with modes `[L, B, K]`.
        remat: recompute each layer in the backward pass.

    Raises:
        ConfigError: a pattern with block choice, a rope type that depends on the length of the sequence, or P that is
            no multiple of the block size.
    """
    config = model.config
    _check(config, prompts_BP.shape[1])
    (B, V), P = response_lengths_BV.shape, prompts_BP.shape[1]
    rows = _response_rows(prompts_BP, prompt_lengths_B, responses_BVR, response_lengths_BV, config.router.block_size)
    layout = make_layout((B, P), lengths=prompt_lengths_B, block_size=config.router.block_size)
    prompt_rope, response_rope = (
        rope_tables(config, positions, jnp.zeros_like(positions))
        for positions in (layout.positions_BT, rows.positions_WT)
    )
    weights_BP = pooling_weights(layout, layout.lengths_BM, config.router)
    _, imposed = model.resolved(routing, B)
    spec = asdict(config.attention_spec)
    attend = on_mesh(hybrid_attention)
    graph, stacked = nnx.split(model.layers)

    def step(x: tuple[jax.Array, jax.Array], xs: tuple) -> tuple[tuple[jax.Array, jax.Array], tuple]:
        x_BPD, x_WTD = x
        state, imposed_BK, index = xs
        layer = nnx.merge(graph, state)

        def attend_in_prompt(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple]:
            logits = layer.router(pool_keys(k, weights_BP, layout))
            gates_BK = argmax_gates(logits, router_bias)[:, 0] if imposed_BK is None else imposed_BK
            mode_BK = to_modes(gates_BK).astype(jnp.int32)
            q, k = prompt_rope.rotate(index, q, k)
            out = attend(q, k, v, mode_BK, lengths=prompt_lengths_B, **spec)
            return out, (k, v, mode_BK, logits)

        x_BPD, (k, v, mode_BK, logits) = layer(x_BPD, attend_in_prompt)

        def attend_in_response(q: jax.Array, k_own: jax.Array, v_own: jax.Array) -> tuple[jax.Array, None]:
            q, k_own = response_rope.rotate(index, q, k_own)
            out = attend(
                q,
                _behind_prompt(k, rows.first_B, k_own, V),
                _behind_prompt(v, rows.first_B, v_own, V),
                jnp.repeat(mode_BK, V, axis=0),
                segment_ids=rows.segment_ids_WS,
                **spec,
            )
            return out, None

        x_WTD, _ = layer(x_WTD, attend_in_response)
        return (x_BPD, x_WTD), (mode_BK.astype(jnp.int8), logits[:, 0])

    x = (model.embed(prompts_BP), model.embed(rows.input_ids_WT))
    z_LBK = None if imposed is None else imposed.z
    layers = (stacked, z_LBK, jnp.arange(config.num_layers))
    (_, x_WTD), (mode, logits) = jax.lax.scan(jax.checkpoint(step) if remat else step, x, layers)
    R = responses_BVR.shape[2]
    wanted_WR = jnp.repeat(rows.tail_B - 1, V)[:, None] + jnp.arange(R + 1)[None]
    hidden_WRD = model.norm(jnp.take_along_axis(x_WTD, wanted_WR[..., None], axis=1))
    return SharedPrefix(hidden_WRD.reshape(B, V, R + 1, -1), Routing(mode, logits))


def separate_rows_hidden(
    model: ElasticForCausalLM,
    prompts_BP: jax.Array,
    prompt_lengths_B: jax.Array,
    responses_BVR: jax.Array,
    response_lengths_BV: jax.Array,
    *,
    routing: Imposed | None = None,
    router_bias: float | jax.Array = 0.0,
    remat: bool | Literal["offload"] = False,
) -> SharedPrefix:
    """The same as `shared_prefix_hidden`, with the prompt repeated in the row of each response; works for every model.

    The arguments are those of `shared_prefix_hidden`, with any P; `remat` as for `ElasticForCausalLM.hidden`.
    """
    config = model.config
    (B, P), (V, R) = prompts_BP.shape, responses_BVR.shape[1:]
    T = -(-(P + R) // config.router.block_size) * config.router.block_size
    prompt_lengths_W = jnp.repeat(prompt_lengths_B, V)
    at_WT = jnp.arange(T)[None] - prompt_lengths_W[:, None]
    prompts_WT = jnp.take(jnp.repeat(prompts_BP, V, axis=0), jnp.minimum(jnp.arange(T), P - 1), axis=1)
    own_WT = jnp.take_along_axis(responses_BVR.reshape(B * V, R), jnp.clip(at_WT, 0, R - 1), axis=1)
    model, imposed = model.resolved(routing, B)
    out = model.hidden(
        jnp.where(at_WT < 0, prompts_WT, own_WT),
        lengths=prompt_lengths_W + response_lengths_BV.reshape(B * V),
        prompt_lengths=prompt_lengths_W,
        gates=None if imposed is None else Gates(jnp.repeat(imposed.z, V, axis=1)),
        router_bias=router_bias,
        remat=remat,
    )
    wanted_WR = jnp.minimum(prompt_lengths_W[:, None] - 1 + jnp.arange(R + 1)[None], T - 1)
    hidden_WRD = jnp.take_along_axis(out.hidden_BTD, wanted_WR[..., None], axis=1)
    routing_LB = jax.tree.map(lambda part: part[:, ::V], out.routing)
    return SharedPrefix(hidden_WRD.reshape(B, V, R + 1, -1), routing_LB)


class _Rows(NamedTuple):
    """Rows of responses; W = B * V, and S = P + T keys of a row."""

    input_ids_WT: jax.Array
    positions_WT: jax.Array
    segment_ids_WS: jax.Array
    first_B: jax.Array
    """Position in the sequence of a row's first token, a multiple of the block size."""
    tail_B: jax.Array
    """Prompt tokens at the start of a row, at least 1."""


def _response_rows(
    prompts_BP: jax.Array, lengths_B: jax.Array, responses_BVR: jax.Array, response_lengths_BV: jax.Array, block: int
) -> _Rows:
    (B, P), (V, R) = prompts_BP.shape, responses_BVR.shape[1:]
    T = -(-(block + R) // block) * block
    first_B = (lengths_B - 1) // block * block
    tail_B = lengths_B - first_B
    at_T = jnp.arange(T)[None]
    prompt_BT = jnp.take_along_axis(prompts_BP, jnp.minimum(first_B[:, None] + at_T, P - 1), axis=1)
    own_BT = jnp.clip(at_T - tail_B[:, None], 0, R - 1)
    own_BVT = jnp.take_along_axis(responses_BVR, own_BT[:, None], axis=2)
    ids_BVT = jnp.where(at_T[None] < tail_B[:, None, None], prompt_BT[:, None], own_BVT)
    positions_BT = first_B[:, None] + at_T
    own_valid_BVT = at_T[None] < (tail_B[:, None] + response_lengths_BV)[..., None]
    prompt_valid_BP = jnp.arange(P)[None] >= P - first_B[:, None]
    valid_BVS = jnp.concatenate([jnp.broadcast_to(prompt_valid_BP[:, None], (B, V, P)), own_valid_BVT], axis=-1)
    return _Rows(
        ids_BVT.reshape(B * V, T),
        jnp.repeat(positions_BT, V, axis=0),
        valid_BVS.reshape(B * V, P + T).astype(jnp.int32),
        first_B,
        tail_B,
    )


def _behind_prompt(prompt_BPKH: jax.Array, first_B: jax.Array, own_WTKH: jax.Array, responses: int) -> jax.Array:
    """Keys (or values) of the rows: the first `first_B` tokens of the prompt at the end of P places, then the own."""
    moved = jax.vmap(lambda x, first: jnp.roll(x, -first, axis=0))(prompt_BPKH, first_B)
    return jnp.concatenate([jnp.repeat(moved, responses, axis=0), own_WTKH], axis=1)


def _check(config: ModelConfig, prompt_tokens: int) -> None:
    if config.router.pattern != "fa-ssa":
        raise ConfigError(f"shared prompts need the pattern fa-ssa; the model has {config.router.pattern}.")
    if config.rope.type in LENGTH_DEPENDENT_ROPE:
        raise ConfigError(
            f"the model's rope type {config.rope.type} depends on the length of the sequence, so a prompt cannot be "
            "shared between continuations."
        )
    if prompt_tokens % config.router.block_size:
        raise ConfigError(
            f"prompts are padded to {prompt_tokens} tokens; want a multiple of {config.router.block_size}."
        )

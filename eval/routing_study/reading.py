"""What the routers make of a prompt: each head's choice, and the task representation before and after the task MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import HeadMode, Routing
from eval.arms import Arm
from eval.samples import Prompt
from eval.scoring import imposed_modes, routing_numbers

_DIGITS = 4


def read_routing(
    model: ElasticForCausalLM, prompts: Sequence[Prompt], arm: Arm, *, tokens: int, rows: int
) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """Sparsity and details of up to `rows` prompts, padded to `[rows, tokens]`.

    Details: `full`, 1 where a KV head runs full, `[L][K]`; `before` and `after`, pooled keys and task MLP outputs,
    means over the KV heads, `[L][H]`.
    """
    ids = np.zeros((rows, tokens), np.int32)
    lengths = np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt.prompt_ids)] = prompt.prompt_ids
        lengths[row] = len(prompt.prompt_ids)
    modes: np.ndarray | None = imposed_modes(arm, rows)
    if modes is None and arm.view != "elastic":
        config = model.config
        modes = np.full((config.num_layers, rows, config.num_kv_heads), HeadMode[arm.view.upper()], np.int32)
    routing, before_LBH, after_LBH = _read(
        model,
        jnp.asarray(ids),
        jnp.asarray(lengths),
        jnp.float32(arm.router_bias),
        None if modes is None else jnp.asarray(modes),
    )
    full_LBK = np.asarray(routing.mode) == HeadMode.FULL
    told = []
    for row in range(len(prompts)):
        details = {
            "full": full_LBK[:, row].astype(int).tolist(),
            "before": np.round(np.asarray(before_LBH[:, row], float), _DIGITS).tolist(),
            "after": np.round(np.asarray(after_LBH[:, row], float), _DIGITS).tolist(),
        }
        told.append((routing_numbers(routing, lengths, model.config, row), details))
    return told


@nnx.jit
def _read(
    model: ElasticForCausalLM, ids_BT: jax.Array, lengths_B: jax.Array, bias: jax.Array, modes_LBK: jax.Array | None
) -> tuple[Routing, jax.Array, jax.Array]:
    out = model.hidden(ids_BT, lengths=lengths_B, gates=modes_LBK, router_bias=bias)
    graph, stacked = nnx.split(model.layers)
    after_LBKH = jax.vmap(lambda state, pooled: nnx.merge(graph, state).router.task(pooled))(stacked, out.pooled)
    return out.routing, out.pooled.mean(2), after_LBKH.mean(2)

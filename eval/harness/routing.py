"""What the routers make of a prompt: each head's choice, and the task representation before and after the task MLP.

Which heads retrieve: attention to the needle while the answer is written, and routings forced by that ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.config import HeadMode
from elastic_jax.errors import DataError
from elastic_jax.files import parse_json, write_json
from elastic_jax.heads import load_heads
from elastic_jax.heads.record import HEADS_ARRAYS, HEADS_CONFIG
from elastic_jax.layout import pad_rows
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.program import model_program
from elastic_jax.rope import rope_tables
from elastic_jax.routing import Gates, Routing
from eval.harness.scoring import arm_gates
from eval.samples import Arm, Prompt

_DIGITS = 4


def read_routing(
    model: ElasticForCausalLM, prompts: Sequence[Prompt], arm: Arm, *, tokens: int, rows: int
) -> list[tuple[dict[str, float], dict[str, Any]]]:
    """Sparsity and details of up to `rows` prompts, padded to `[rows, tokens]`.

    Details: `full`, 1 where a KV head runs full, `[L][K]`; `before` and `after`, pooled keys and task MLP outputs,
    means over the KV heads, `[L][H]`.
    """
    ids, lengths = pad_rows([prompt.prompt_ids for prompt in prompts], tokens, rows)
    routing, before_LBH, after_LBH = _read(
        model,
        jnp.asarray(ids),
        jnp.asarray(lengths),
        jnp.float32(arm.router_bias),
        arm_gates(arm, model.config, rows),
    )
    full_LBK = np.asarray(routing.mode) == HeadMode.FULL
    told = []
    for row in range(len(prompts)):
        details = {
            "full": full_LBK[:, row].astype(int).tolist(),
            "before": np.round(np.asarray(before_LBH[:, row], float), _DIGITS).tolist(),
            "after": np.round(np.asarray(after_LBH[:, row], float), _DIGITS).tolist(),
        }
        told.append((routing.measures(lengths, model.config, row), details))
    return told


@model_program
def _read(
    model: ElasticForCausalLM, ids_BT: jax.Array, lengths_B: jax.Array, bias: jax.Array, gates: Gates | None
) -> tuple[Routing, jax.Array, jax.Array]:
    out = model.hidden(ids_BT, lengths=lengths_B, gates=gates, router_bias=bias)
    graph, stacked = nnx.split(model.layers)
    after_LBKH = jax.vmap(lambda state, pooled: nnx.merge(graph, state).router.task(pooled))(stacked, out.pooled)
    return out.routing, out.pooled.mean(2), after_LBKH.mean(2)


def needle_attention(
    model: ElasticForCausalLM, prompts: Sequence[Prompt], *, tokens: int, rows: int
) -> list[np.ndarray]:
    """Share of its attention that each KV head gives to the needle while the answer is written, `[L, K]`.

    All heads run full. Mean over the tokens of the answer, the largest of the query heads of a KV head. The needle is
    `Sample.fields["needle"]`, the answer the continuation.
    """
    width = max(len(prompt.continuation_ids) for prompt in prompts)
    ids, lengths = pad_rows([[*prompt.prompt_ids, *prompt.continuation_ids] for prompt in prompts], tokens, rows)
    starts, answers, needles = np.ones(rows, np.int32), np.ones(rows, np.int32), np.zeros((rows, 2), np.int32)
    for row, prompt in enumerate(prompts):
        starts[row], answers[row] = len(prompt.prompt_ids), len(prompt.continuation_ids)
        needles[row] = prompt.sample.fields["needle"]
    arrays = (jnp.asarray(array) for array in (ids, lengths, starts, answers, needles))
    mass_LBK = _attend(model, *arrays, width=-(-width // 8) * 8)
    return [np.asarray(mass_LBK[:, row]) for row in range(len(prompts))]


@partial(model_program, static=("width",))
def _attend(
    model: ElasticForCausalLM,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    starts_B: jax.Array,
    answers_B: jax.Array,
    needles_B2: jax.Array,
    *,
    width: int,
) -> jax.Array:
    config = model.config
    out = model.hidden(ids_BT, lengths=lengths_B, gates="full", return_layers=True, return_kv=True)
    assert out.layers is not None and out.kv is not None
    where_BA = jnp.minimum(starts_B[:, None] - 1 + jnp.arange(width)[None], ids_BT.shape[1] - 1)
    counted_BA = jnp.arange(width)[None] < answers_B[:, None]
    seq_len_BA = jnp.broadcast_to(lengths_B[:, None], where_BA.shape)
    rope = rope_tables(config, where_BA, seq_len_BA)
    place_1T = jnp.arange(ids_BT.shape[1])[None]
    seen_BAT = place_1T[None] <= where_BA[..., None]
    if config.sliding_window is not None:
        seen_BAT &= place_1T[None] > where_BA[..., None] - config.sliding_window
    needle_BT = (place_1T >= needles_B2[:, :1]) & (place_1T < needles_B2[:, 1:])
    graph, stacked = nnx.split(model.layers)

    def layer_mass(_: None, xs: tuple) -> tuple[None, jax.Array]:
        state, x_BTD, k_BTKH, index = xs
        layer = nnx.merge(graph, state)
        x_BAD = jnp.take_along_axis(x_BTD, where_BA[..., None], axis=1)
        q, k, _v = layer.project(x_BAD)
        q_BANH = rope.rotate(index, q, k)[0]
        B, A, N, H = q_BANH.shape
        q_BAKGH = q_BANH.reshape(B, A, config.num_kv_heads, -1, H)
        scores = jnp.einsum("bakgh,btkh->bkgat", q_BAKGH, k_BTKH, preferred_element_type=jnp.float32)
        scores = scores * config.attention_spec.scale
        share = jax.nn.softmax(jnp.where(seen_BAT[:, None, None], scores, -jnp.inf), axis=-1)
        mass_BKGA = share.sum(-1, where=needle_BT[:, None, None, None]) * counted_BA[:, None, None].astype(share.dtype)
        return None, (mass_BKGA.sum(-1) / answers_B[:, None, None].astype(jnp.float32)).max(-1)

    layers = (stacked, out.layers[:-1], out.kv[0], jnp.arange(config.num_layers))
    return jax.lax.scan(layer_mass, None, layers)[1]


def forced_modes(scores_LK: Sequence[Sequence[float]], share: float) -> tuple[tuple[int, ...], ...]:
    """Head modes in which `share` of all heads run sparse, those that score lowest (Elastic Attention, table 5)."""
    scores = np.asarray(scores_LK, float)
    modes = np.full(scores.size, int(HeadMode.FULL))
    modes[np.argsort(scores, axis=None, kind="stable")[: round(share * scores.size)]] = HeadMode.SPARSE
    return tuple(tuple(int(mode) for mode in row) for row in modes.reshape(scores.shape))


def write_head_scores(path: Path, scores_LK: np.ndarray, samples: int) -> None:
    """Writes the `heads.json` that `read_head_scores` reads."""
    write_json(path, {"samples": samples, "needle_attention": np.round(scores_LK, 6).tolist()}, indent=None)


def read_head_scores(path: str | Path) -> list[list[float]]:
    """Scores by layer and KV head from a `heads.json`, or by the order of calibrated heads.

    Raises:
        DataError: no such file, or another kind of file.
        CheckpointError: heads that are not whole.
    """
    if Path(path).is_dir() or Path(path).suffix == ".tsv" or Path(path).name in (HEADS_CONFIG, HEADS_ARRAYS):
        return (-load_heads(path).order).tolist()
    try:
        scores = parse_json(Path(path).read_bytes())["needle_attention"]
        if np.asarray(scores, float).ndim != 2:
            raise ValueError("the scores are no table")
        if not np.isfinite(np.asarray(scores, float)).all():
            raise ValueError("the scores are not all finite")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no heads.json of `eval heads`: {error!r}") from error
    return scores

"""The step: one gradient however the batch is cut, laid out or filled up; and what learns."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reward_batches import cut, judge_rows, pair_batch
from tiny import tiny_model, tiny_reward_model

from elastic_jax.weights.names import SCORE
from train.reward.config import (
    AdamConfig,
    BradleyTerryConfig,
    BradleyTerryTrainConfig,
    JudgeDataConfig,
    LoraConfig,
    SftConfig,
    SimpoTrainConfig,
)
from train.reward.objectives import bradley_terry_objective, sft_objective, simpo_objective
from train.reward.step import first_state, make_measure, make_step
from train.reward.weights import assemble

OPTIM = AdamConfig(steps=4, warmup=0.0, learning_rate=1e-2, clip=1e9)
COMMON = {"dtype": "float32", "remat": False, "optim": OPTIM}
CONFIGS = {
    "sft": SftConfig(**COMMON, data=JudgeDataConfig(row_length=32, max_segments=2)),
    "simpo": SimpoTrainConfig(**COMMON),
    "bt": BradleyTerryTrainConfig(**COMMON, loss=BradleyTerryConfig(use_margin=True, centring=0.01)),
}
OBJECTIVES = {"sft": sft_objective, "simpo": simpo_objective, "bt": bradley_terry_objective}
BATCHES = {"sft": judge_rows(), "simpo": pair_batch(), "bt": pair_batch()}
KINDS = list(CONFIGS)
WHOLE, ADAPTERS = LoraConfig(), LoraConfig(rank=2)


@cache
def model(kind: str):
    return tiny_reward_model() if kind == "bt" else tiny_model()


@cache
def program(kind: str, lora: LoraConfig = WHOLE, **changes):
    """(step, parameters, frozen arrays) of one kind of training."""
    assembly, params, frozen = assemble(model(kind), lora, block_size=None, seed=0)
    objective = OBJECTIVES[kind](assembly, replace(CONFIGS[kind], lora=lora, **changes))
    return objective, make_step(objective, OPTIM), params, frozen


def stepped(kind: str, batch, **changes):
    """State and metrics after one step from the same start."""
    _, step, params, frozen = program(kind, **changes)
    return step(first_state(jax.tree.map(jnp.array, params), OPTIM), frozen, batch)


def assert_same(one, other) -> None:
    """Equal losses, and equal gradients by way of Adam's two averages of them."""
    for name in other[1].keys() - {"tokens"}:
        np.testing.assert_allclose(one[1][name], other[1][name], rtol=2e-5, atol=1e-6, err_msg=name)
    got, want = (jax.tree.leaves(result[0].opt_state) for result in (one, other))
    for a, b in zip(got, want, strict=True):
        scale = float(jnp.abs(b).max()) + 1e-12
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_micro_batches_of_unequal_weight_changes_no_gradient(kind: str) -> None:
    one = stepped(kind, cut(BATCHES[kind], 2))
    other = stepped(kind, cut(type(BATCHES[kind])(*(field[[3, 1, 2, 0]] for field in BATCHES[kind])), 2))
    assert_same(other, one)
    assert one[1]["grad_norm"] > 0.01
    moved = [path for path, x in one[0].params.items() if not np.array_equal(x, program(kind)[2][path])]
    assert set(moved) == set(program(kind)[2]), "a parameter did not learn"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_into_micro_batches_has_the_same_gradient(kind: str) -> None:
    whole = stepped(kind, cut(BATCHES[kind], 1))
    assert_same(stepped(kind, cut(BATCHES[kind], 4)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["simpo", "bt"])
def test_layouts_have_the_same_gradient(kind: str) -> None:
    batch = cut(BATCHES[kind], 1)
    assert_same(stepped(kind, batch, layout="separate"), stepped(kind, batch))


@pytest.mark.slow
def test_packed_samples_have_the_gradient_of_separate_rows() -> None:
    rows = BATCHES["sft"]
    alone = [
        type(rows)(
            *(np.pad(field[:, half], ((0, 0), (0, 16))) for field in rows[:1]),
            np.pad((rows.segment_ids[:, half] > 0).astype(np.int32), ((0, 0), (0, 16))),
            *(np.pad(field[:, half], ((0, 0), (0, 16))) for field in rows[2:4]),
            np.stack([rows.prompt_lengths[:, index], np.zeros(4, np.int32)], axis=1),
            rows.task_ids,
        )
        for index, half in enumerate((slice(0, 16), slice(16, 32)))
    ]
    separate = type(rows)(*(np.concatenate(fields)[None] for fields in zip(*alone, strict=True)))
    assert_same(stepped("sft", separate), stepped("sft", cut(rows, 1)))


def test_rows_that_fill_up_a_batch_change_no_measure() -> None:
    objective, _, params, frozen = program("simpo")
    batch = BATCHES["simpo"]
    nothing = pair_batch(seed=9)._replace(response_lengths=np.zeros_like(batch.response_lengths))
    state = first_state(params, OPTIM)
    want = make_measure(objective, [batch])(state, frozen)
    assert make_measure(objective, [batch, nothing])(state, frozen) == pytest.approx(want)
    assert 0 <= want["accuracy"] <= 1


def test_with_adapters_only_they_and_the_score_head_learn() -> None:
    _, _, params, frozen = program("bt", ADAPTERS)
    assert all(".lora_" in path or path == SCORE for path in params)
    assert not params.keys() & frozen.keys()
    before = jax.tree.map(np.array, frozen)
    state, _ = stepped("bt", cut(BATCHES["bt"], 1), lora=ADAPTERS)
    moved = {path for path, x in state.params.items() if not np.array_equal(x, params[path])}
    assert moved == {path for path in params if not path.endswith("lora_down")}  # whose slope is 0 at first
    for path, x in before.items():
        np.testing.assert_array_equal(frozen[path], x)

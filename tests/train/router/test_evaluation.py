import json
from contextlib import closing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, tiny_model
from train_run import tiny_config, tiny_samples

from elastic_jax.errors import DataError
from elastic_jax.weights import from_pretrained, save_pretrained
from train.config import GateConfig, OptimConfig
from train.data.dataset import digest
from train.data.records import TASKS
from train.loop.checkpoint import Checkpoints
from train.router.evaluation import OBJECTIVE, make_evaluation, split_samples
from train.router.run import train_router
from train.router.step import first_state, fresh_routers, split_params


def test_samples_are_either_trained_on_or_held_out():
    samples = tiny_samples()
    trained, held = split_samples(samples, 0.25, seed=1)
    assert len(held) == 3 and len(trained) == 9
    ids = sorted(tuple(sample.input_ids.tolist()) for sample in samples)
    assert sorted(tuple(sample.input_ids.tolist()) for sample in trained + held) == ids
    assert split_samples(samples, 0.0, seed=1)[1] == []
    with pytest.raises(DataError, match="held_out 0.97 of 12 samples leaves none to train on"):
        split_samples(samples, 0.97, seed=1)


def test_the_fingerprint_of_the_data_covers_every_field():
    first, *others = tiny_samples(3)
    prints = {digest([first._replace(**{name: field + 1}), *others]) for name, field in first._asdict().items()}
    assert len(prints | {digest([first, *others])}) == 1 + len(first)


def test_figures_are_those_of_the_routers_own_decisions():
    config = tiny_config(optim=OptimConfig(rows=2))
    samples = tiny_samples(5)
    model = tiny_model()
    _, frozen = split_params(model)
    evaluate = make_evaluation(CONFIG, config, samples, lambda rows: rows)
    ids, labels, weights = (
        np.stack([np.pad(field, (0, 128 - len(field))) for field in fields])
        for fields in zip(*((s.input_ids, s.labels, s.weights) for s in samples), strict=True)
    )
    lengths = jnp.array([len(sample.input_ids) for sample in samples])
    ends = np.array([task.target for task in config.tasks.by_id])
    for bias, share, routing in ((60.0, 0.0, "full"), (-60.0, 1.0, "sparse")):
        figures = evaluate(first_state(fresh_routers(CONFIG, GateConfig(initial_bias=bias), seed=0), config), frozen)
        logits = model(ids, lengths=lengths, routing=routing).logits
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
        assert figures["loss"] == pytest.approx(float((weights * nll).sum()) / 5, rel=1e-4)
        assert [figures[f"msr/{task}"] for task in TASKS] == pytest.approx([share] * 5)
        violation = np.maximum(ends[:, 0] - share, 0) + np.maximum(share - ends[:, 1], 0)
        assert figures[OBJECTIVE] == pytest.approx(figures["loss"] + (violation**2).mean(), rel=1e-4)


def test_the_routers_of_the_best_evaluation_are_exported(tmp_path):
    run = tmp_path / "run"
    config = tiny_config(optim=OptimConfig(steps=4, learning_rate=3e-2, warmup=0.0))
    config = replace(config, data=replace(config.data, held_out=0.25), run=replace(config.run, eval_every=1))
    train_router(config, tiny_model(), tiny_samples(), run)
    told = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == [1, 2, 3, 4]
    with closing(Checkpoints(run / "checkpoints", keep=2, best=OBJECTIVE)) as checkpoints:
        step = checkpoints.best_step
        state, _ = checkpoints.restore(first_state(split_params(tiny_model())[0], config), step)
    assert told[step - 1][OBJECTIVE] == min(line[OBJECTIVE] for line in told)
    save_pretrained(tiny_model(), tmp_path / "model", format="hf")
    exported, _ = split_params(from_pretrained(tmp_path / "model", dtype="auto", router=run / "router"))
    for path, array in state.trainable.router.items():
        np.testing.assert_array_equal(exported[path], array, err_msg=path)

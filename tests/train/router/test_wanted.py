from dataclasses import replace

import numpy as np
import pytest
from tiny import CONFIG

from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.heads import Heads
from train.config import TaskConfig, TasksConfig
from train.data.records import CODE, ICL, SINGLE_QA, SUMMARIZATION
from train.router.wanted import wanted_gates

TASKS = TasksConfig(
    TaskConfig(target=(0.5, 0.5)),
    TaskConfig(target=(0.5, 0.5)),
    TaskConfig(target=(0.7, 0.8)),
    TaskConfig(target=(0.7, 0.8)),
    TaskConfig(target=(0.0, 0.0)),
)


def saved(folder, order, **changes):
    Heads(np.array(order), **{"router": CONFIG.router, **changes}).save(folder)
    return folder


def test_one_record_is_cut_at_the_target_of_each_task(tmp_path):
    found = wanted_gates(saved(tmp_path / "heads", [[0, 1], [2, 3]]), CONFIG, TASKS, None)
    assert found[SINGLE_QA].tolist() == [[1, 1], [0, 0]]
    assert found[SUMMARIZATION].tolist() == [[1, 0], [0, 0]]
    assert found[ICL].tolist() == [[1, 1], [1, 1]]


def test_records_by_task_serve_their_tasks(tmp_path):
    for name, order in {"retrieval": [[0, 1], [2, 3]], "prose": [[3, 2], [1, 0]], "code": [[2, 0], [1, 3]]}.items():
        saved(tmp_path / f"heads-{name}", order)
    found = wanted_gates(tmp_path, CONFIG, TASKS, None)
    assert found[SINGLE_QA].tolist() == [[1, 1], [0, 0]]
    assert found[SUMMARIZATION].tolist() == [[0, 0], [0, 1]]
    assert found[CODE].tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("changes", "order", "error", "named"),
    [
        ({}, [[0, 1, 2], [3, 4, 5]], (CheckpointError, ConfigError), "KV heads"),
        ({"router": replace(CONFIG.router, local_blocks=5)}, [[0, 1], [2, 3]], ConfigError, "local_blocks"),
        ({"weights": "a" * 64}, [[0, 1], [2, 3]], CheckpointError, "weights"),
    ],
    ids=["shape", "geometry", "weights"],
)
def test_heads_of_something_else_are_refused(tmp_path, changes, order, error, named):
    source = saved(tmp_path / "heads", order, **changes)
    with pytest.raises(error, match=named):
        wanted_gates(source, CONFIG, TASKS, "b" * 64)


def test_what_routers_pool_does_not_matter(tmp_path):
    source = saved(tmp_path / "heads", [[0, 1], [2, 3]], router=replace(CONFIG.router, pool_window=7, width=2))
    assert wanted_gates(source, CONFIG, TASKS, None).shape == (5, 2, 2)


def test_no_record_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no calibrated heads"):
        wanted_gates(tmp_path, CONFIG, TASKS, None)

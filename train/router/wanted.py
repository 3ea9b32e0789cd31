"""The gates that routers are fitted to, from calibrated heads: a set of full heads for each task."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from elastic_jax.config import HeadMode, ModelConfig
from elastic_jax.heads import Heads, load_heads
from elastic_jax.weights.heads import check_weights
from train.config import TasksConfig
from train.data.records import CODE, SUMMARIZATION, TASKS

_RECORD_OF = {SUMMARIZATION: "heads-prose", CODE: "heads-code"}
_OTHERS = "heads-retrieval"
"""Folders of the records by task in a run of `train heads --per-task`; tasks without one of their own retrieve."""


def wanted_gates(
    source: Path, model: ModelConfig, tasks: TasksConfig, fingerprint: str | None, model_name: str | None = None
) -> np.ndarray:
    """Gates float32 `[tasks, L, K]` (1.0 = full): the heads of each task, cut at the middle of its target MSR.

    Args:
        source: one record for all tasks, or a folder with `heads-retrieval`, `heads-prose` and `heads-code`.
        fingerprint: of the model's weights; None where they cannot be compared.
        model_name: names the model in errors.

    Raises:
        CheckpointError: no such records, or heads of other weights.
        ConfigError: heads of other layers, KV heads, pattern or blocks.
    """
    by_task = (source / _OTHERS).is_dir()
    records: dict[Path, Heads] = {}
    gates = []
    for task, settings in enumerate(tasks.by_id):
        path = source / _RECORD_OF.get(task, _OTHERS) if by_task else source
        if path not in records:
            records[path] = load_heads(path)
            records[path].check_fits(model)
            check_weights(records[path], fingerprint, model_name)
        gates.append(records[path].modes(sum(settings.target) / 2) == HeadMode.FULL)
    assert len(gates) == len(TASKS)
    return np.array(gates, np.float32)

"""The figures of the router report, computed from the records of its samples; the contents of its `results.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.harness.runner import Record
from eval.report.tables import paired_difference, ratio_interval, wilson_interval
from eval.samples import VIEWS
from eval.suites.probes import PROBE_TASKS

ALL_PROBES = "all"
"""The task that pools the retrieval tasks."""
TEXTS = ("prose", "code")
REFERENCE_LENGTH = 2048
"""Prompt tokens of the headline; the longest length where this one was not measured."""


@dataclass(frozen=True)
class ViewRow:
    """`n` samples of one task and length under one view, and the sparsity that was chosen for them."""

    task: str
    length: int
    view: str
    """`full`, `sparse`, `elastic`, or `heads` for calibrated heads."""
    n: int
    msr: float
    esr: float
    esr_last_layer: float


@dataclass(frozen=True)
class RetrievalRow(ViewRow):
    """Answers that greedy decoding would give word for word, with a 95 % interval of their share."""

    correct: int
    accuracy: float
    interval: tuple[float, float]
    answer_log_prob: float
    """Mean log-probability of a token of the answer, nats."""


@dataclass(frozen=True)
class LossRow(ViewRow):
    """Loss on running text; `rise` is that over full attention on the same windows, nats per token."""

    nll: float
    perplexity: float
    rise: float
    rise_error: float


@dataclass(frozen=True)
class Headline:
    """What routed attention keeps of full attention at one length."""

    length: int
    retrieval_kept: float | None
    """Right answers over those of full attention; None where that gives none."""
    retrieval_kept_interval: tuple[float, float] | None
    msr: dict[str, float]
    """Share of heads that run sparse, by task."""
    share_of_sparse_rise: dict[str, float | None]
    """Rise in loss over that of all-sparse attention, by kind of text; None where the latter is not above 0."""
    heads_kept: float | None = None
    """What calibrated heads keep, as `retrieval_kept`; None also where there are none."""
    heads_kept_interval: tuple[float, float] | None = None
    heads_msr: float | None = None


@dataclass(frozen=True)
class RouterReport:
    """Everything that `results.json` holds."""

    command: str
    settings: Mapping[str, Any]
    program: Mapping[str, str]
    retrieval: Sequence[RetrievalRow]
    """By length, task (the last one `all`) and view."""
    loss: Sequence[LossRow]
    headline: Headline
    prefill: Mapping[str, Mapping[str, float]]
    """Median seconds by prompt tokens and view."""


def retrieval_rows(records: Sequence[Record], lengths: Sequence[int]) -> list[RetrievalRow]:
    """The rows of every probe task and of all together."""
    rows = []
    for length, task, view in _cells(records, lengths, (*PROBE_TASKS, ALL_PROBES)):
        chosen = _chosen(records, length, PROBE_TASKS if task == ALL_PROBES else (task,), view)
        correct = int(_values(chosen, "exact").sum())
        rows.append(
            RetrievalRow(
                **_view_row(chosen, length, task, view),
                correct=correct,
                accuracy=correct / len(chosen),
                interval=wilson_interval(correct, len(chosen)),
                answer_log_prob=float(_values(chosen, "log_prob").mean()),
            )
        )
    return rows


def loss_rows(records: Sequence[Record], lengths: Sequence[int]) -> list[LossRow]:
    """The rows of prose and code."""
    rows = []
    for length, task, view in _cells(records, lengths, TEXTS):
        chosen, full = (_chosen(records, length, (task,), name) for name in (view, "full"))
        losses = -_values(chosen, "log_prob")
        rise, error = paired_difference(losses, -_values(full, "log_prob"))
        nll = float(losses.mean())
        rows.append(
            LossRow(
                **_view_row(chosen, length, task, view),
                nll=nll,
                perplexity=math.exp(nll),
                rise=rise,
                rise_error=error,
            )
        )
    return rows


def headline(records: Sequence[Record], retrieval: Sequence[RetrievalRow], loss: Sequence[LossRow]) -> Headline:
    """What routed attention keeps at the reference length."""
    lengths = [row.length for row in retrieval]
    length = REFERENCE_LENGTH if REFERENCE_LENGTH in lengths else max(lengths)
    full, elastic, heads = (
        _values(_chosen(records, length, PROBE_TASKS, view), "exact") for view in ("full", "elastic", "heads")
    )
    heads_msr = next((row.msr for row in retrieval if (row.length, row.view) == (length, "heads")), None)
    rises = {(row.task, row.view): row.rise for row in loss if row.length == length}
    heads_kept, heads_interval = _kept(heads, full)
    return Headline(
        length,
        *_kept(elastic, full),
        msr={
            row.task: row.msr
            for row in [*retrieval, *loss]
            if (row.length, row.view) == (length, "elastic") and row.task not in PROBE_TASKS
        },
        share_of_sparse_rise={task: share_of_rise(rises[task, "elastic"], rises[task, "sparse"]) for task in TEXTS},
        heads_kept=heads_kept,
        heads_kept_interval=heads_interval,
        heads_msr=heads_msr,
    )


def _kept(exact: np.ndarray, full: np.ndarray) -> tuple[float | None, tuple[float, float] | None]:
    """Right answers over those of full attention, with an interval; None where there are none."""
    if not full.any() or not exact.size:
        return None, None
    return float(exact.sum() / full.sum()), ratio_interval(exact, full)


def share_of_rise(elastic: float, sparse: float) -> float | None:
    """The rise in loss of routed attention as a share of that of all-sparse attention, where there is one."""
    return elastic / sparse if sparse > 0 else None


def _cells(records: Sequence[Record], lengths: Sequence[int], tasks: Sequence[str]) -> list[tuple[int, str, str]]:
    views = (*VIEWS, "heads") if any(record["arm"] == "heads" for record in records) else VIEWS
    return [(length, task, view) for length in lengths for task in tasks for view in views]


def _chosen(records: Sequence[Record], length: int, tasks: Sequence[str], view: str) -> list[Record]:
    return [r for r in records if r["axes"]["length"] == length and r["task"] in tasks and r["arm"] == view]


def _view_row(records: Sequence[Record], length: int, task: str, view: str) -> dict[str, Any]:
    sparsity = {name: float(_values(records, name).mean()) for name in ("msr", "esr", "esr_last_layer")}
    return {"task": task, "length": length, "view": view, "n": len(records)} | sparsity


def _values(records: Sequence[Record], name: str) -> np.ndarray:
    """One number of every record, from its scores or its measurements."""
    return np.array([(record["numbers"] | record["scores"])[name] for record in records], float)

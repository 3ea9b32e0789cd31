"""Figures of the router report, computed from the journal's per-sample scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from elastic_jax.journal import Journal
from eval.harness.runner import records_of
from eval.report.tables import paired_difference, ratio_interval, wilson_interval
from eval.samples import VIEWS, View
from eval.tasks import Group

ALL_PROBES = "all"
REFERENCE_LENGTH = 2048
SPARSITY = ("msr", "esr", "esr_last_layer")

Scores = dict[str, np.ndarray]


def summarise(
    retrieval: Sequence[Group], loss: Sequence[Group], labels: dict[View, str], journal: Journal
) -> dict[str, Any]:
    """Rows per task, length and view for retrieval and loss, and the headline at the reference length.

    The reference length is 2048 tokens, or the longest length where that was not measured. Task `all` pools the
    retrieval tasks. `labels` names the arm of each view in the journal.
    """
    retrieval_scores = _by_length_and_task(retrieval, labels, journal)
    for length, tasks in retrieval_scores.items():
        tasks[ALL_PROBES] = _pool(list(tasks.values()))
        retrieval_scores[length] = tasks
    loss_scores = _by_length_and_task(loss, labels, journal)
    reference = REFERENCE_LENGTH if REFERENCE_LENGTH in retrieval_scores else max(retrieval_scores)
    return {
        "retrieval": [
            {"task": task, "length": length, "view": view} | _retrieval_row(views[view])
            for length, tasks in retrieval_scores.items()
            for task, views in tasks.items()
            for view in VIEWS
        ],
        "loss": [
            {"task": task, "length": length, "view": view} | _loss_row(views[view], views["full"])
            for length, tasks in loss_scores.items()
            for task, views in tasks.items()
            for view in VIEWS
        ],
        "headline": _headline(reference, retrieval_scores[reference][ALL_PROBES], loss_scores[reference]),
    }


def _by_length_and_task(
    groups: Sequence[Group], labels: dict[View, str], journal: Journal
) -> dict[int, dict[str, dict[View, Scores]]]:
    table: dict[int, dict[str, dict[View, Scores]]] = {}
    for group in groups:
        for view, label in labels.items():
            records = [record["scores"] | record["numbers"] for record in records_of(group, label, journal)]
            scores = {name: np.array([record[name] for record in records], float) for name in records[0]}
            table.setdefault(group.tokens, {}).setdefault(group.task.name, {})[view] = scores
    return table


def _pool(tasks: Sequence[dict[View, Scores]]) -> dict[View, Scores]:
    names = tasks[0]["full"]
    return {view: {name: np.concatenate([task[view][name] for task in tasks]) for name in names} for view in VIEWS}


def _retrieval_row(scores: Scores) -> dict[str, Any]:
    n, correct = len(scores["exact"]), int(scores["exact"].sum())
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "interval": wilson_interval(correct, n),
        "answer_log_prob": float(scores["log_prob"].mean()),
    } | _sparsity(scores)


def _loss_row(scores: Scores, full: Scores) -> dict[str, Any]:
    nll = -float(scores["log_prob"].mean())
    rise, error = paired_difference(-scores["log_prob"], -full["log_prob"])
    row = {"n": len(scores["log_prob"]), "nll": nll, "perplexity": math.exp(nll), "rise": rise, "rise_error": error}
    return row | _sparsity(scores)


def _sparsity(scores: Scores) -> dict[str, float]:
    return {name: float(scores[name].mean()) for name in SPARSITY}


def _headline(length: int, probes: dict[View, Scores], loss: dict[str, dict[View, Scores]]) -> dict[str, Any]:
    full, elastic = probes["full"]["exact"], probes["elastic"]["exact"]
    msr = {ALL_PROBES: float(probes["elastic"]["msr"].mean())}
    share: dict[str, float | None] = {}
    for task, views in loss.items():
        msr[task] = float(views["elastic"]["msr"].mean())
        rises = {view: paired_difference(-views[view]["log_prob"], -views["full"]["log_prob"])[0] for view in VIEWS}
        share[task] = rises["elastic"] / rises["sparse"] if rises["sparse"] > 0 else None
    return {
        "length": length,
        "retrieval_kept": float(elastic.sum() / full.sum()) if full.any() else None,
        "retrieval_kept_interval": ratio_interval(elastic, full) if full.any() else None,
        "msr": msr,
        "share_of_sparse_rise": share,
    }

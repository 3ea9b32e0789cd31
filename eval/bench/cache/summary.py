"""Figures of the quality section of the cache report, computed from the journal's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elastic_jax.journal import Journal
from elastic_jax.kv_cache import CacheConfig
from eval.harness.runner import records_of
from eval.report.tables import paired_difference, wilson_interval
from eval.tasks import Group

EXACT = "16"
"""Label of the cache without quantisation in the journal."""
UNQUANTISED = "unquantised"
"""Its name in reports: it has the bits of the model dtype."""


def summarise_quality(
    loss: Sequence[Group], retrieval: Sequence[Group], kinds: Mapping[str, CacheConfig], journal: Journal
) -> dict[str, Any]:
    """Rows of loss for each text and kind, rows of retrieval for each kind over all probes, and gaps closed; rows only
    of what `loss` and `retrieval` hold.

    `rise` is the loss minus that of the exact cache on the same windows, nats per token. `closed` has, for each text,
    number of bits and key transform, which share of the rise outlier tokens take away: of the rise with that transform
    (`own`), and of the plain rise (`plain`); None where the rise is within two standard errors of nothing.
    """
    losses = {group.task.name: {kind: -_column([group], kind, journal, "log_prob") for kind in kinds} for group in loss}
    loss_rows = []
    for task, by_kind in losses.items():
        for kind, values in by_kind.items():
            rise, error = paired_difference(values, by_kind[EXACT])
            nll = float(values.mean())
            row = {"task": task, "kind": kind, "n": len(values), "perplexity": math.exp(nll)}
            loss_rows.append(row | {"rise": rise, "rise_error": error})
    retrieval_rows = []
    for kind in kinds if retrieval else ():
        exact = _column(retrieval, kind, journal, "exact")
        correct = int(exact.sum())
        retrieval_rows.append(
            {
                "kind": kind,
                "n": len(exact),
                "correct": correct,
                "interval": wilson_interval(correct, len(exact)),
                "by_task": {
                    group.task.name: int(_column([group], kind, journal, "exact").sum()) for group in retrieval
                },
                "answer_log_prob": float(_column(retrieval, kind, journal, "log_prob").mean()),
            }
        )
    return {"loss": loss_rows, "retrieval": retrieval_rows, "closed": _closed(loss_rows, kinds)}


def _column(groups: Sequence[Group], kind: str, journal: Journal, name: str) -> np.ndarray:
    return np.array([record[name] for group in groups for record in records_of(group, kind, journal)], float)


def _closed(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, CacheConfig]) -> list[dict[str, Any]]:
    found = {(row["task"], row["kind"]): row for row in rows}

    def share(without: Mapping[str, Any], kept: Mapping[str, Any]) -> float | None:
        return 1 - kept["rise"] / without["rise"] if without["rise"] > 2 * without["rise_error"] else None

    closed = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for kind, config in kinds.items():
            if kind == EXACT or not config.outliers:
                continue
            own, plain = (f"{config.bits}/{transform}/0" for transform in (config.key_transform, "none"))
            shares = {
                name: share(found[task, base], found[task, kind]) for name, base in (("own", own), ("plain", plain))
            }
            closed.append({"task": task, "kind": kind} | shares)
    return closed

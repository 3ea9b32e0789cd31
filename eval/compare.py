"""Two runs of the same samples side by side, paired by sample: is the difference more than chance?"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.errors import DataError
from elastic_jax.files import write_text
from elastic_jax.journal import read_records
from eval.harness.records import Record, check_record
from eval.report.page import csv_text, table
from eval.report.tables import bootstrap_mean, sign_test
from eval.suites.rewardbench.items import hashed_order
from eval.suites.rewardbench.results import join_rewards

_COMPARED = ("task", "uid", "arm", "showing", "main", "scores")
"""Fields of a record that a comparison needs."""
_Samples = dict[tuple[str, str], dict[str, Record]]
"""Records by task and uid, then by the label of the showing."""


def compare_runs(a: str | Path, b: str | Path, arm_a: str | None, arm_b: str | None) -> dict[str, Any]:
    """Pairs the records of two output folders by sample.

    A sample counts once, with the mean over the showings that both runs have. Rewards of single answers are joined
    into one ranking per sample; between equal rewards an order decides that is drawn from the sample, in both runs
    alike.

    Args:
        arm_a, arm_b: the arms to compare; by default every arm that both runs have with itself.

    Raises:
        DataError: a folder without a journal, an arm that is not there, or no sample in common.
    """
    found_a, found_b = _records(a), _records(b)
    answers: dict[str, int] = defaultdict(int)
    for record in (*found_a, *found_b):
        if record["main"] == "reward":
            answers[record["uid"]] = max(answers[record["uid"]], record["showing"]["order"][0] + 1)
    records = {"a": _by_arm(found_a, answers), "b": _by_arm(found_b, answers)}
    for wanted, side in ((arm_a, "a"), (arm_b, "b")):
        if wanted is not None and wanted not in records[side]:
            raise DataError(f"{a if side == 'a' else b} has no arm {wanted!r}; it has {', '.join(records[side])}.")
    if arm_a is None and arm_b is None:
        pairs = [(arm, arm) for arm in records["a"] if arm in records["b"]]
    else:
        pairs = [(arm_a or str(arm_b), arm_b or str(arm_a))]
    rows, unpaired = [], 0
    for first, second in pairs:
        left, right = records["a"].get(first, {}), records["b"].get(second, {})
        tasks: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for key in left:
            shared = left[key].keys() & right.get(key, {}).keys()
            if shared:
                task, _ = key
                tasks[task].append((_mean_score(left[key], shared), _mean_score(right[key], shared)))
        unpaired += len(left.keys() | right.keys()) - sum(map(len, tasks.values()))
        rows += [_row(task, first, second, found) for task, found in tasks.items()]
        if len(tasks) > 1:
            rows.append(_row("all", first, second, [pair for found in tasks.values() for pair in found]))
    if not rows:
        raise DataError(f"{a} and {b} have no arm and sample in common; want runs of the same benchmark.")
    return {"a": Path(a).name, "b": Path(b).name, "rows": rows, "unpaired": unpaired}


def _records(folder: str | Path) -> list[Record]:
    values = read_records(folder)[1].items()
    found = {key: record for key, record in values if isinstance(record, dict) and "uid" in record}
    return [check_record(f"{folder}, key {key!r},", record, _COMPARED) for key, record in found.items()]


def _by_arm(records: Sequence[Record], answers: Mapping[str, int]) -> dict[str, _Samples]:
    """Records by arm; rewards, of `answers` answers to each sample, as rankings."""
    orders = {uid: hashed_order(uid, count, seed=0) for uid, count in answers.items()}
    whole = [record for record in records if record["main"] != "reward"]
    joined = join_rewards([record for record in records if record["main"] == "reward"], orders)
    arms: dict[str, _Samples] = defaultdict(lambda: defaultdict(dict))
    for record in (*whole, *joined):
        arms[record["arm"]][record["task"], record["uid"]][record["showing"]["label"]] = record
    return dict(arms)


def _mean_score(showings: Mapping[str, Record], labels: Collection[str]) -> float:
    records = [showings[label] for label in sorted(labels)]
    return statistics.fmean(record["scores"].get(record["main"], 0.0) for record in records)


def _row(task: str, arm_a: str, arm_b: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    a, b = (np.array(side) for side in zip(*pairs, strict=True))
    difference = b - a
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "task": task,
        "arm_a": arm_a,
        "arm_b": arm_b,
        "n": len(pairs),
        "score_a": float(a.mean()),
        "score_b": float(b.mean()),
        "difference": float(difference.mean()),
        "interval": list(bootstrap_mean(difference)),
        "better": better,
        "worse": worse,
        "p": sign_test(better, worse),
    }


def write_comparison(report: dict[str, Any], out: Path) -> None:
    """Writes `comparison.md` and `comparison.csv` into the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.md", render_comparison(report))
    write_text(out / "comparison.csv", csv_text(report["rows"]))


def render_comparison(report: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    body = []
    for row in report["rows"]:
        arms = row["arm_a"] if row["arm_a"] == row["arm_b"] else f"{row['arm_a']} → {row['arm_b']}"
        low, high = row["interval"]
        body.append(
            [
                row["task"],
                arms,
                str(row["n"]),
                f"{100 * row['score_a']:.1f}",
                f"{100 * row['score_b']:.1f}",
                f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
                f"{row['better']} / {row['worse']}",
                f"{row['p']:.3f}",
            ]
        )
    unpaired = report["unpaired"]
    left_out = f" {unpaired} samples that only one run has are left out." if unpaired else ""
    header = ["task", "arm", "n", f"A: {report['a']}", f"B: {report['b']}", "B - A", "better / worse", "p"]
    return (
        f"# {report['a']} against {report['b']}\n\nMean scores in percent over the samples that both runs have, the "
        "difference with its 95 % interval (bootstrap of the pairs), how many samples got better and worse, and the "
        f"probability of so uneven a split by chance (exact sign test).{left_out}\n\n" + table(header, body) + "\n"
    )

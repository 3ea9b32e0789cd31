"""The report of a judge on a reward benchmark: figures as plain data, and the same figures as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.page import table
from eval.suites.rewardbench.results import Judged, biases_of, summary, swap_of

_FAILURES = {
    "empty": "empty reply",
    "unparsed": "no verdict in the reply",
    "stopped": "reply cut off before a verdict",
    "too_long": "prompt too long, not shown",
}


def judge_figures(judged_by_parser: Mapping[str, Sequence[Judged]], axes: Sequence[str], swap_axis: str) -> dict:
    """All figures of one judge.

    Args:
        judged_by_parser: the verdicts as each parser reads them; the first parser gives the score.
        axes: names of the axes by which results are broken down.
        swap_axis: the axis by which consistency under swapped answers is broken down.
    """
    judged = next(iter(judged_by_parser.values()))
    swap = swap_of(judged)
    return {
        "all": summary(judged),
        "by": {axis: {value: summary(part) for value, part in _parts(judged, axis).items()} for axis in axes},
        "parsers": {parser: summary(verdicts) for parser, verdicts in judged_by_parser.items()},
        "bias": biases_of(judged) if any(not one.item.ranking for one in judged) else None,
        "swap": None
        if swap is None
        else {"all": swap}
        | {
            value: part_swap
            for value, part in _parts(judged, swap_axis).items()
            if (part_swap := swap_of(part)) is not None
        },
    }


def figures_markdown(figures: Mapping[str, Any], judge: str) -> str:
    """Tables of the figures, as sections of a report whose headings name the judge."""
    parts = {"agreement with the true ranking": _breakdown(figures), "failures": _failures(figures["all"])}
    if len(figures["parsers"]) > 1:
        parts["the same replies under other parsers"] = _parsers(figures["parsers"])
    if figures["swap"] is not None:
        parts["both orders"] = _swap(figures["swap"])
    if figures["bias"] is not None:
        parts["leanings on pairs"] = _bias(figures["bias"])
    return "\n\n".join(f"## {judge}: {title}\n\n{text}" for title, text in parts.items())


def _parts(judged: Sequence[Judged], axis: str) -> dict[str, list[Judged]]:
    parts: dict[str, list[Judged]] = {}
    for one in judged:
        parts.setdefault(one.item.axes[axis], []).append(one)
    return parts


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _row(name: Sequence[str], figures: Mapping[str, Any], rankings: bool) -> list[str]:
    low, high = figures["interval"]
    cells = [
        *name,
        str(figures["items"]),
        f"{_share(figures['match'])} ({_share(low)}–{_share(high)})",
        _share(figures["match_if_parsed"]),
    ]
    if rankings:
        tau = figures["kendall_tau_if_parsed"]
        cells += [_share(figures["top1"]), _share(figures["exact"]), f"{figures['reciprocal_rank']:.3f}"]
        cells.append("–" if tau is None else f"{tau:.3f}")
    return [*cells, str(sum(figures["failed"].values()))]


def _breakdown(figures: Mapping[str, Any]) -> str:
    # For pairs alone, top-1 and exact match are the accuracy.
    rankings = figures["all"]["exact"] != figures["all"]["match"]
    header = ["by", "", "records", "rank match, %", "of parsed, %"]
    header += ["top-1, %", "exact, %", "reciprocal rank", "Kendall tau"] if rankings else []
    rows = [_row(("all", ""), figures["all"], rankings)]
    for axis, values in figures["by"].items():
        rows += [_row((axis, value or "–"), part, rankings) for value, part in values.items()]
    return (
        "Rank match: share of answers given their true rank, which for a pair is "
        "plain accuracy; a reply without verdict scores 0. In brackets its 95 % interval (Wilson's for shares of right "
        "and wrong, else a bootstrap over records).\n\n" + table([*header, "replies without verdict"], rows)
    )


def _failures(figures: Mapping[str, Any]) -> str:
    failed = figures["failed"]
    rows = [(_FAILURES.get(status, status), str(count)) for status, count in failed.items()]
    rows.append(("text cut out of the prompt (judged nevertheless)", str(figures["shortened"])))
    return (
        f"Of {figures['replies']:,} replies asked for, {sum(failed.values()):,} hold no verdict. They "
        "count as wrong above.\n\n" + table(["what", "replies"], rows)
    )


def _parsers(parsers: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (name, _share(part["match"]), _share(part["match_if_parsed"]), str(sum(part["failed"].values())))
        for name, part in parsers.items()
    ]
    header = ["parser", "rank match, %", "of parsed, %", "replies without verdict"]
    return table(header, rows)


def _swap(swap: Mapping[str, Mapping[str, Any]]) -> str:
    names = ("both_right", "both_wrong", "flip_first", "flip_second", "unparsed")
    rows = [
        (value or "–", str(part["n"]), _share(part["consistency"]), *(str(part[name]) for name in names))
        for value, part in swap.items()
    ]
    header = ["pairs", "n", "consistent, %", "both right", "both wrong", "always first", "always second", "no verdict"]
    return (
        "Consistent: both orders choose the same answer, right or wrong; a reply without verdict is "
        "not consistent.\n\n" + table(header, rows)
    )


def _bias(bias: Mapping[str, float | None]) -> str:
    rows = [
        ("P(picks the answer shown first) - 50", _share(bias["first_position"])),
        ("P(picks the longer answer) - 50", _share(bias["longer_answer"])),
        ("accuracy, better answer shown first", _share(bias["accuracy_better_first"])),
        ("accuracy, better answer shown second", _share(bias["accuracy_better_second"])),
    ]
    return "Over replies with a verdict.\n\n" + table(["", "%"], rows)

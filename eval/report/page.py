"""A benchmark report as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eval.report.tables import Row, row_key, time_ratios
from eval.samples import FULL

_STATUSES = ("empty", "unparsed", "unfinished", "too_long")


def render_benchmark(report: dict[str, Any], method: str, further: str, pictures: Sequence[str]) -> str:
    """The whole page: scores, what they cost, what went wrong, how it was measured."""
    parts = [f"# {report['title']}", _completeness(report)]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["## Scores", _scores(report), _costs(report), further, _failures(report)]
    settings = settings_section(report["command"], report["settings"], report["program"])
    parts += ["## How it was measured", method, settings]
    return "\n\n".join(part for part in parts if part) + "\n"


def _completeness(report: dict[str, Any]) -> str:
    missing = report["wanted"] - report["done"]
    if not missing:
        return ""
    errors = report["errors"]
    shown = f" {len(errors)} of them failed, the first with: {next(iter(errors.values()))}." if errors else ""
    return (
        f"**Incomplete: {missing} of {report['wanted']} samples are missing.**{shown} The same command asks for them "
        "again."
    )


def _scores(report: dict[str, Any]) -> str:
    rows: list[Row] = [*report["rows"], *report["means"]]
    axes, arms = report["axes"], report["arms"]
    cells = {row_key(row): row for row in rows}
    body = []
    for about in dict.fromkeys(row_key(row)[:-1] for row in rows):
        found = [cells.get((*about, arm)) for arm in arms]
        n = max(row["n"] for row in found if row)
        body.append([_named(about[0]), *map(_named, about[1:]), str(n), *map(_score, found)])
    header = ["task", *axes, "n", *arms]
    return (
        "Mean score in percent with its 95 % interval: Wilson's for scores of 0 or 1, else by bootstrap; that of the "
        "mean of tasks from theirs.\n\n" + table(header, body)
    )


def _score(row: Row | None) -> str:
    if row is None:
        return "–"
    low, high = row["interval"]
    return f"{100 * row['score']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _costs(report: dict[str, Any]) -> str:
    rows = [row for row in report["rows"] if "msr" in row]
    if not rows:
        return ""
    ratios = time_ratios(rows, FULL)
    body = []
    for row in rows:
        cache = f"{row['cache_bytes'] / 2**20:.2f}" if "cache_bytes" in row else "–"
        seconds = [f"{row[name]:.3f}" if name in row else "–" for name in ("prefill_s", "decode_s")]
        ratio = ratios.get(row_key(row))
        body.append(
            [
                _named(row["task"]),
                *(_named(row[axis]) for axis in report["axes"]),
                row["arm"],
                *(f"{row[name]:.3f}" for name in ("msr", "esr", "esr_last_layer")),
                cache,
                *seconds,
                f"{ratio:.2f}" if ratio else "–",
            ]
        )
    header = ["task", *report["axes"], "arm", "MSR", "ESR", "ESR, last layer"]
    header += ["cache, MiB", "prefill, s", "decode, s", "time / full"]
    return (
        "## Sparsity, cache and time\n\nMSR: share of (layer, KV head) pairs that run sparse. ESR: share of causal "
        "(query, key) pairs skipped in the prompt. Cache: bytes allocated per sample. Times: medians per sample, "
        "compilation left out; they depend on how long the answers are.\n\n" + table(header, body)
    )


def _failures(report: dict[str, Any]) -> str:
    rows = [
        [
            _named(row["task"]),
            *(_named(row[axis]) for axis in report["axes"]),
            row["arm"],
            *(str(row.get(name, 0)) for name in (*_STATUSES, "cut", "out_of_room")),
        ]
        for row in report["rows"]
        if any(row.get(name) for name in (*_STATUSES, "cut"))
    ]
    if not rows:
        return "No reply was empty or unreadable, and no prompt was cut or too long."
    header = ["task", *report["axes"], "arm", "empty", "unreadable", "still thinking", "too long", "cut"]
    header.append("ran out of room")
    return (
        "## Counted failures\n\nAll of these are in the scores above. Cut prompts were shown without the tokens that "
        "did not fit; prompts too long were not shown and score 0; replies still thinking ended before an answer.\n\n"
        + table(header, rows)
    )


def settings_section(command: str, settings: Mapping[str, Any], program: Mapping[str, str]) -> str:
    """The command that repeats a run, what the results depend on, and what they were measured with."""
    shown = {name: value for name, value in settings.items() if name != "first_prompts"}
    lines = "\n".join(f"- {name}: `{value}`" for name, value in shown.items() if value is not None)
    return (
        f"```\n{command}\n```\n\n{lines}\n\nelastic-jax {program['elastic_jax']}, commit "
        f"{program['commit']}, jax {program['jax']}, {program['device']}."
    )


def _named(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "–" if value is None else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are figures."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with a column for every name that any of them has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

"""The cache report as Markdown, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elastic_jax.plots import save_figure
from eval.bench.cache.summary import EXACT, UNQUANTISED
from eval.report.page import table


def render_cache_report(report: Mapping[str, Any]) -> str:
    """The whole page: speed tables, quality tables, the command."""
    parts = ["# Caches compared"]
    if "speed" in report:
        parts += speed_parts(report["speed"])
    if "quality" in report:
        parts += quality_parts(report["quality"])
    parts.append(f"```\n{report['command']}\n```\n\nOn {report['device']}.")
    return "\n\n".join(parts) + "\n"


def speed_parts(speed: Mapping[str, Any]) -> list[str]:
    """Bytes and speed at equal batch, then at the largest batch within the budget; ratios to full heads unquantised."""
    parts = [f"## Bytes and decode speed, {speed['tokens']:,} tokens a row"]
    for dtype, measured in speed["equal"].items():
        parts.append(f"Equal batch, {dtype}; share of sparse heads in the elastic rows {measured['msr']:.2f}.")
        parts.append(_speed_table(measured["rows"]))
        parts += [f"Not measured: {kind} ({reason})" for kind, reason in measured["missing"].items()]
    for dtype, measured in speed["budget"].items():
        parts.append(f"Largest batch whose cache fits in {measured['budget'] / 2**20:,.0f} MiB, {dtype}.")
        parts.append(_speed_table(measured["rows"]))
    return parts


def _speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    base = next(row for row in rows if row["kind"] == f"{UNQUANTISED}, full")
    body = []
    for row in rows:
        size, rate = row["cache_bytes"] / row["rows"], row["rows"] / row["seconds"]
        ratios = (base["cache_bytes"] / base["rows"] / size, rate * base["seconds"] / base["rows"])
        figures = (f"{row['rows']}", f"{size / 2**20:.1f}", f"{1e3 * row['seconds']:.0f}", f"{rate:.1f}")
        body.append([row["kind"], *figures, *(f"{ratio:.2f}" for ratio in ratios)])
    header = ["cache", "rows", "MiB a row", "ms a step", "tokens/s", "times smaller", "times faster"]
    return table(header, body)


def quality_parts(quality: Mapping[str, Any]) -> list[str]:
    """Perplexity and retrieval of every kind, and how much of the plain gap outliers close."""
    settings = quality["settings"]
    parts = [
        "## Quality",
        f"Prompts of {settings['tokens']:,} tokens, {settings['view']} heads, {settings['dtype']} weights.",
    ]
    if quality["loss"]:
        parts += [*_loss_parts(quality, settings["scored_tokens"]), "![Rise of the loss by kind of cache](cache.png)"]
    if quality["retrieval"]:
        parts += _retrieval_parts(quality["retrieval"])
    return parts


def _loss_parts(quality: Mapping[str, Any], scored_tokens: int) -> list[str]:
    loss = {(row["task"], row["kind"]): row for row in quality["loss"]}
    texts = list(dict.fromkeys(task for task, _ in loss))
    body = []
    for kind in dict.fromkeys(kind for _, kind in loss):
        rows = [loss[text, kind] for text in texts]
        figures = [(f"{row['perplexity']:.3f}", f"{row['rise']:+.4f} ± {row['rise_error']:.4f}") for row in rows]
        body.append([kind_name(kind), *(cell for pair in figures for cell in pair)])
    header = ["cache", *(cell for text in texts for cell in (f"{text}: perplexity", "rise"))]
    counts = ", ".join(f"{loss[text, EXACT]['n']} of {text}" for text in texts)
    closed = [
        [row["task"], kind_name(row["kind"]), *(f"{row[name]:.0%}" if row[name] else "–" for name in ("own", "plain"))]
        for row in quality["closed"]
        if row["own"] is not None or row["plain"] is not None
    ]
    return [
        f"The last {scored_tokens} tokens of each window ({counts}) are fed one by one through the cache, as in "
        "generation. Rise: mean loss minus the unquantised one, nats per token ± standard error over windows.",
        table(header, body),
        "Share of the rise that is taken away, where there is one of more than two standard errors.",
        table(["text", "cache", "of the rise without outliers", "of the plain rise"], closed),
    ]


def _retrieval_parts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    tasks = list(rows[0]["by_task"])
    body = []
    for row in rows:
        low, high = row["interval"]
        by_task = [str(row["by_task"][task]) for task in tasks]
        shares = (f"{row['correct']}/{row['n']} ({low:.0%}–{high:.0%})", f"{row['answer_log_prob']:.3f}")
        body.append([kind_name(row["kind"]), *by_task, *shares])
    return [
        "Answers that greedy decoding would give word for word, of "
        f"{rows[0]['n'] // len(tasks)} prompts of each kind, all together with their 95 % interval, and the mean "
        "log-probability of an answer token.",
        table(["cache", *tasks, "all", "log-probability"], body),
    ]


def kind_name(kind: str) -> str:
    """`2/hadamard/3` in words."""
    if kind == EXACT:
        return UNQUANTISED
    bits, transform, outliers = kind.split("/")
    words = [] if transform == "none" else [transform.replace("hadamard+token_norm", "Hadamard, token norms")]
    words += [f"{outliers} outliers"] if int(outliers) else []
    return f"{bits} bits, " + (" and ".join(words).replace("hadamard", "Hadamard") if words else "plain")


def draw_quality(quality: Mapping[str, Any], path: Path) -> None:
    """Bars of the rise in loss for each text and kind, with standard errors."""
    from matplotlib.figure import Figure

    texts = list(dict.fromkeys(row["task"] for row in quality["loss"]))
    kinds = list(dict.fromkeys(row["kind"] for row in quality["loss"] if row["kind"] != EXACT))
    figure = Figure(figsize=(9, 0.9 + 0.26 * len(kinds)), layout="constrained")
    axes = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    colours = {"2": "#d1495b", "4": "#edae49", "8": "#30638e"}
    for axis, text in zip(axes, texts, strict=True):
        rows = {row["kind"]: row for row in quality["loss"] if row["task"] == text}
        axis.barh(
            [kind_name(kind) for kind in kinds],
            [rows[kind]["rise"] for kind in kinds],
            xerr=[rows[kind]["rise_error"] for kind in kinds],
            color=[colours[kind.partition("/")[0]] for kind in kinds],
        )
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_title(f"{text}: rise of the loss, nats per token", fontsize=9)
        axis.tick_params(labelsize=8)
    axes[0].invert_yaxis()
    save_figure(figure, path)

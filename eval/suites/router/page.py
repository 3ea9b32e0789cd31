"""The router report as Markdown, ready for the documentation, and its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from elastic_jax.plots import save_figure
from eval.report.figures import draw_by_length
from eval.report.page import settings_section, table
from eval.samples import HEADS
from eval.suites.router.report import ALL_PROBES, LossRow, RetrievalRow, RouterReport, ViewRow, share_of_rise

_NAMES = {"full": "full", "sparse": "all-sparse", "elastic": "elastic", "heads": HEADS}
_TASKS = {"passkey": "pass key", "kv": "key-value", "fact": "fact", ALL_PROBES: "all three"}


def render_markdown(report: RouterReport) -> str:
    """The whole page: headline, picture, tables, how it was measured, settings."""
    parts = [
        "# Results: full, all-sparse and routed attention",
        _headline(report),
        "![Retrieval accuracy by length; sparsity by task](results.png)",
        _retrieval(report.retrieval),
        _loss(report.loss, report.settings["scored_tokens"]),
        _sparsity([*report.retrieval, *report.loss]),
        _prefill(report),
        _method(report),
        "## Settings",
        settings_section(report.command, report.settings, report.program),
    ]
    return "\n\n".join(parts) + "\n"


def draw_report(report: RouterReport, path: Path) -> None:
    """Draws retrieval accuracy by length (with intervals) beside MSR by task, in the format of the path's ending."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    accuracy, sparsity = figure.subplots(1, 2)
    pooled = [
        {"arm": _NAMES[row.view], "length": row.length, "score": row.accuracy, "interval": row.interval}
        for row in report.retrieval
        if row.task == ALL_PROBES
    ]
    draw_by_length(accuracy, pooled, [_NAMES[view] for view in _views(report.retrieval)])
    accuracy.set_ylim(-2, 102)
    accuracy.set_title("Retrieval: answers right, word for word, %", fontsize=10)
    accuracy.legend(fontsize=8)

    rows = [row for row in [*report.retrieval, *report.loss] if row.view == "elastic" and row.task != ALL_PROBES]
    tasks = list(dict.fromkeys(row.task for row in rows))
    lengths = list(dict.fromkeys(row.length for row in rows))
    width = 0.8 / len(lengths)
    for number, length in enumerate(lengths):
        chosen = [row for row in rows if row.length == length]
        places = [tasks.index(row.task) + (number - (len(lengths) - 1) / 2) * width for row in chosen]
        shade = 0.4 + 0.6 * (number + 1) / len(lengths)
        label = f"{length:,} tokens"
        sparsity.bar(places, [row.msr for row in chosen], width, color="#2a9d54", alpha=shade, label=label)
    sparsity.set_xticks(range(len(tasks)), tasks)
    sparsity.set_ylim(0, 1.15)
    sparsity.set_title("Share of heads that the routers run sparse (MSR)", fontsize=10)
    sparsity.legend(fontsize=8, loc="upper center", ncols=len(lengths))
    save_figure(figure, path)


def _headline(report: RouterReport) -> str:
    head = report.headline
    lines = [f"At {head.length:,} tokens:", ""]
    if head.retrieval_kept is None or head.retrieval_kept_interval is None:
        lines.append("- full attention answers no retrieval prompt, so there is nothing to keep;")
    else:
        low, high = head.retrieval_kept_interval
        lines.append(
            f"- routed attention keeps {head.retrieval_kept:.1%} of full attention's retrieval accuracy "
            f"(95 % interval {low:.1%} to {high:.1%}), with {head.msr[ALL_PROBES]:.3f} of the heads sparse (MSR);"
        )
    if head.heads_kept is not None and head.heads_kept_interval is not None:
        low, high = head.heads_kept_interval
        lines.append(
            f"- calibrated heads keep {head.heads_kept:.1%} of it (95 % interval {low:.1%} to {high:.1%}), with "
            f"{head.heads_msr:.3f} of the heads sparse for every prompt;"
        )
    for task, share in head.share_of_sparse_rise.items():
        rise = (
            "all-sparse loss does not rise"
            if share is None
            else f"the rise in loss is {share:.2f} of the all-sparse rise"
        )
        gap = head.msr[task] - head.msr[ALL_PROBES]
        lines.append(f"- on {task} the MSR is {head.msr[task]:.3f} ({gap:+.3f} against retrieval) and {rise};")
    seconds = report.prefill[str(head.length)]
    lines.append(f"- prefill takes {seconds['elastic'] / seconds['full']:.2f} of the time of full attention.")
    return "\n".join(lines)


def _retrieval(rows: Sequence[RetrievalRow]) -> str:
    body = []
    for cell in _cells(rows):
        shown = [
            f"{row.accuracy:.0%} ({row.interval[0]:.0%}–{row.interval[1]:.0%}), {row.answer_log_prob:.2f}"
            for row in cell.values()
        ]
        body.append([*_about(cell["full"]), str(cell["full"].n), *shown])
    header = ["probe", "tokens", "n", *(_NAMES[view] for view in _views(rows))]
    return (
        "## Retrieval\n\nShare of answers that greedy decoding would give word for word (95 % Wilson interval), and "
        "the mean log-probability of an answer token.\n\n" + table(header, body)
    )


def _loss(rows: Sequence[LossRow], scored_tokens: int) -> str:
    body = []
    for cell in _cells(rows):
        perplexities = [f"{row.perplexity:.2f}" for row in cell.values()]
        others = [row for view, row in cell.items() if view != "full"]
        rises = [f"{row.rise:+.4f} ± {row.rise_error:.4f}" for row in others]
        shares = [share_of_rise(row.rise, cell["sparse"].rise) for row in others if row.view != "sparse"]
        shown = ["–" if share is None else f"{share:.2f}" for share in shares]
        body.append([*_about(cell["full"]), str(cell["full"].n), *perplexities, *rises, *shown])
    names = {view: _NAMES[view] for view in _views(rows)}
    header = ["text", "tokens", "n", *(f"perplexity, {name}" for name in names.values())]
    header += [f"rise, {name}" for view, name in names.items() if view != "full"]
    header += [f"share, {name}" for view, name in names.items() if view not in ("full", "sparse")]
    return (
        f"## Loss on running text\n\nLast {scored_tokens} tokens of each window. Rise: mean loss minus that of full "
        "attention on the same windows, nats per token ± standard error; share: rise over all-sparse rise.\n\n"
        + table(header, body)
    )


def _sparsity(rows: Sequence[ViewRow]) -> str:
    body = [
        [*_about(row), *(f"{share:.3f}" for share in (row.msr, row.esr, row.esr_last_layer))]
        for row in rows
        if row.view == "elastic"
    ]
    return (
        "## Sparsity chosen by the routers\n\nMSR: share of (layer, KV head) pairs that run sparse. ESR: share of "
        "causal (query, key) pairs skipped.\n\n"
        + table(["task", "tokens", "MSR", "ESR, mean of layers", "ESR, last layer"], body)
    )


def _prefill(report: RouterReport) -> str:
    body = [
        [f"{int(length):,}", *(f"{value:.3f}" for value in seconds.values()), *_of_full(seconds).values()]
        for length, seconds in report.prefill.items()
    ]
    timed = next(iter(report.prefill.values()))
    header = [
        "tokens",
        *(f"{_NAMES[view]}, s" for view in timed),
        *(f"{_NAMES[view]} / full" for view in _of_full(timed)),
    ]
    return "## Prefill time\n\nMedian over retrieval prompts, one at a time.\n\n" + table(header, body)


def _of_full(seconds: Mapping[str, float]) -> dict[str, str]:
    """Time of each way to choose heads as a share of that of full attention."""
    return {view: f"{seconds[view] / seconds['full']:.2f}" for view in seconds if view not in ("full", "sparse")}


def _method(report: RouterReport) -> str:
    settings = report.settings
    sink, local, block = settings["blocks"]
    probes = settings["probes"]
    further = "; calibrated heads, the same for every prompt" if "heads" in _views(report.retrieval) else ""
    return (
        "## How it was measured\n\n"
        "Ways to run the same weights: every head full; every head sparse; each head as the routers decide from the "
        f"prompt{further}. A sparse head sees {sink} block(s) of {block} tokens at the start and the last {local} "
        "blocks, the token's own included.\n\n"
        "A retrieval prompt is an excerpt of real text in which one sentence states a pass key, a secret word or a "
        f"place of birth, and {probes['distractors']} other(s) state the same of something else; the question follows "
        f"at the end. No such sentence starts in the first {probes['sink_tokens']} tokens or ends in the last "
        f"{probes['local_tokens']} before the question, so no sparse head sees both. Prompt and answer run through the "
        "model once; an answer counts when each of its tokens is the most likely one, which is when greedy decoding "
        "writes it. Heads that are sparse for the prompt are sparse for the answer too, as in "
        "`CacheConfig(sparse_decode=True)`. The routers see the prompt, never the answer or the scored text.\n\n"
        "Texts, names, words and numbers are those that `elastic_jax.text.split` keeps out of router training; the "
        "backbone may have met the texts in its own pretraining. Every sample runs under all of them, so differences "
        "are paired."
    )


def _views(rows: Sequence[ViewRow]) -> list[str]:
    return list(dict.fromkeys(row.view for row in rows))


def _cells[R: ViewRow](rows: Sequence[R]) -> list[dict[str, R]]:
    """The rows of one task and length together, by view."""
    cells: dict[tuple[int, str], dict[str, R]] = {}
    for row in rows:
        cells.setdefault((row.length, row.task), {})[row.view] = row
    return list(cells.values())


def _about(row: ViewRow) -> list[str]:
    return [_TASKS.get(row.task, row.task), f"{row.length:,}"]

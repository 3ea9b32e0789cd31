"""The router report as Markdown, ready for the documentation."""

from __future__ import annotations

from typing import Any

from eval.report.page import table
from eval.samples import VIEWS
from eval.suites.router.report import ALL_PROBES

_VIEW_NAMES = {"full": "full", "sparse": "all-sparse", "elastic": "elastic"}
_TASK_NAMES = {
    "passkey": "pass key",
    "kv": "key-value",
    "fact": "fact",
    ALL_PROBES: "all three",
    "prose": "prose",
    "code": "code",
}


def render_markdown(report: dict[str, Any]) -> str:
    """The whole page: headline, picture, tables, how it was measured, settings."""
    parts = [
        "# Results: full, all-sparse and routed attention",
        _headline(report),
        "![Retrieval accuracy by length; sparsity by task](results.png)",
        _retrieval(report),
        _loss(report),
        _sparsity(report),
        _prefill(report),
        _method(report),
        _settings(report),
    ]
    return "\n\n".join(parts) + "\n"


def _headline(report: dict[str, Any]) -> str:
    head = report["headline"]
    lines = [f"At {head['length']:,} tokens:", ""]
    if head["retrieval_kept"] is None:
        lines.append("- full attention answers no retrieval prompt, so there is nothing to keep;")
    else:
        low, high = head["retrieval_kept_interval"]
        lines.append(
            f"- routed attention keeps {head['retrieval_kept']:.1%} of full attention's retrieval accuracy "
            f"(95 % interval {low:.1%} to {high:.1%}), with {head['msr'][ALL_PROBES]:.3f} of the heads sparse (MSR);"
        )
    for task, share in head["share_of_sparse_rise"].items():
        rise = (
            "all-sparse loss does not rise"
            if share is None
            else f"the rise in loss is {share:.2f} of the all-sparse rise"
        )
        gap = head["msr"][task] - head["msr"][ALL_PROBES]
        lines.append(f"- on {task} the MSR is {head['msr'][task]:.3f} ({gap:+.3f} against retrieval) and {rise};")
    seconds = report["prefill"][str(head["length"])]
    lines.append(f"- prefill takes {seconds['elastic'] / seconds['full']:.2f} of the time of full attention.")
    return "\n".join(lines)


def _retrieval(report: dict[str, Any]) -> str:
    rows = report["retrieval"]
    cells = {(row["task"], row["length"], row["view"]): row for row in rows}
    body = []
    for task, length in dict.fromkeys((row["task"], row["length"]) for row in rows):
        views = [cells[task, length, view] for view in VIEWS]
        shown = [
            f"{row['accuracy']:.0%} ({row['interval'][0]:.0%}–{row['interval'][1]:.0%}), {row['answer_log_prob']:.2f}"
            for row in views
        ]
        body.append([_TASK_NAMES[task], f"{length:,}", str(views[0]["n"]), *shown])
    header = ["probe", "tokens", "n", *_VIEW_NAMES.values()]
    return (
        "## Retrieval\n\nShare of answers that greedy decoding would give word for word (95 % Wilson interval), and "
        "the mean log-probability of an answer token.\n\n" + table(header, body)
    )


def _loss(report: dict[str, Any]) -> str:
    rows = report["loss"]
    cells = {(row["task"], row["length"], row["view"]): row for row in rows}
    body = []
    for task, length in dict.fromkeys((row["task"], row["length"]) for row in rows):
        full, sparse, elastic = (cells[task, length, view] for view in VIEWS)
        perplexities = [f"{row['perplexity']:.2f}" for row in (full, sparse, elastic)]
        rises = [f"{row['rise']:+.4f} ± {row['rise_error']:.4f}" for row in (sparse, elastic)]
        share = f"{elastic['rise'] / sparse['rise']:.2f}" if sparse["rise"] > 0 else "–"
        body.append([_TASK_NAMES[task], f"{length:,}", str(full["n"]), *perplexities, *rises, share])
    header = ["text", "tokens", "n"]
    header += [f"perplexity, {name}" for name in _VIEW_NAMES.values()]
    header += ["rise, all-sparse", "rise, elastic", "share"]
    return (
        f"## Loss on running text\n\nLast {report['settings']['scored_tokens']} tokens of each window. Rise: mean loss "
        "minus that of full attention on the same windows, nats per token ± standard error; share: elastic rise over "
        "all-sparse rise.\n\n" + table(header, body)
    )


def _sparsity(report: dict[str, Any]) -> str:
    body = [
        [
            _TASK_NAMES[row["task"]],
            f"{row['length']:,}",
            *(f"{row[name]:.3f}" for name in ("msr", "esr", "esr_last_layer")),
        ]
        for row in [*report["retrieval"], *report["loss"]]
        if row["view"] == "elastic"
    ]
    return (
        "## Sparsity chosen by the routers\n\nMSR: share of (layer, KV head) pairs that run sparse. ESR: share of "
        "causal (query, key) pairs skipped.\n\n"
        + table(["task", "tokens", "MSR", "ESR, mean of layers", "ESR, last layer"], body)
    )


def _prefill(report: dict[str, Any]) -> str:
    body = [
        [f"{int(length):,}", *(f"{seconds[view]:.3f}" for view in VIEWS), f"{seconds['elastic'] / seconds['full']:.2f}"]
        for length, seconds in report["prefill"].items()
    ]
    header = ["tokens", *(f"{name}, s" for name in _VIEW_NAMES.values()), "elastic / full"]
    return "## Prefill time\n\nMedian over retrieval prompts, one at a time.\n\n" + table(header, body)


def _method(report: dict[str, Any]) -> str:
    settings = report["settings"]
    sink, local, block = settings["blocks"]
    probes = settings["probes"]
    return (
        "## How it was measured\n\n"
        "Three ways to run the same weights: every head full; every head sparse; each head as the routers decide from "
        f"the prompt. A sparse head sees {sink} block(s) of {block} tokens at the start and the last {local} blocks, "
        "the token's own included.\n\n"
        "A retrieval prompt is an excerpt of real text in which one sentence states a pass key, a secret word or a "
        f"place of birth, and {probes['distractors']} other(s) state the same of something else; the question follows "
        f"at the end. No such sentence starts in the first {probes['sink_tokens']} tokens or ends in the last "
        f"{probes['local_tokens']} before the question, so no sparse head sees both. Prompt and answer run through the "
        "model once; an answer counts when each of its tokens is the most likely one, which is when greedy decoding "
        "writes it. Heads that are sparse for the prompt are sparse for the answer too, as in "
        "`CacheConfig(sparse_decode=True)`. The routers see the prompt, never the answer or the scored text.\n\n"
        "Texts, names, words and numbers are those that `elastic_jax.text.split` keeps out of router training; the "
        "backbone may have met the texts in its own pretraining. Every sample runs under all three, so differences "
        "are paired."
    )


def _settings(report: dict[str, Any]) -> str:
    settings, program = report["settings"], report["program"]
    texts = ", ".join(f"{name} `{digest}`" for name, digest in settings["texts"].items())
    return (
        "## Settings\n\n"
        f"```\n{report['command']}\n```\n\n"
        f"Model `{settings['backbone']}` in {settings['dtype']}, router `{settings['router']}`, prompts "
        f"`{settings['first_samples']}`, texts {texts} (digests). elastic-jax {program['elastic_jax']}, commit "
        f"{program['commit']}, jax {program['jax']}, {program['device']}."
    )

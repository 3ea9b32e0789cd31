"""`run_router_report` measures full, all-sparse and routed attention, and calibrated heads, and writes the report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from elastic_jax.cli.model import load_model, load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.files import write_json, write_text
from elastic_jax.heads import Heads
from elastic_jax.journal import Journal
from elastic_jax.layout import check_positions
from elastic_jax.model import require_routers
from elastic_jax.routing import Imposed
from eval.harness.backends.local import ModelBackend, with_router_settings
from eval.harness.provenance import command_line, modes_digest, program, prompts_digest
from eval.harness.runner import first_prompts, measure
from eval.harness.timing import prefill_seconds
from eval.samples import VIEWS, Arm
from eval.suites.haystack import prose_and_code, prose_texts
from eval.suites.needles import probe_groups, scored_answer
from eval.suites.perplexity import perplexity_groups
from eval.suites.probes import PROBE_TASKS, unseen_by_sparse_heads
from eval.suites.router.page import draw_report, render_markdown
from eval.suites.router.report import RouterReport, headline, loss_rows, retrieval_rows
from eval.suites.router.settings import RouterReportSettings
from eval.tasks import Group


def run_router_report(settings: RouterReportSettings, out: Path) -> RouterReport:
    """Measures what `out/journal.jsonl` lacks, and writes `results.json`, `.md` and `.png` into `out`.

    Raises:
        ConfigError: lengths beyond the positions of the model.
        DataError: the texts do not suffice, or the journal in `out` was made under other settings.
    """
    model = load_model(settings)
    require_routers(model, "a router report")
    heads = model.heads
    model = with_router_settings(
        model.without_heads(), sink_blocks=settings.sink_blocks, local_blocks=settings.local_blocks
    )
    if heads is not None:
        heads.check_fits(model.config)
    longest = max(settings.lengths)
    check_positions(model.config, longest, f"lengths has {longest}", "Leave it out", ConfigError)
    backend, tokenizer = ModelBackend(model), load_model_tokenizer(settings)
    probes = unseen_by_sparse_heads(model.config.router, distractors=settings.distractors, seed=settings.seed)
    texts = prose_and_code(prose_texts(settings.texts, "evaluation"), settings.code, tokenizer)
    count = settings.samples(settings.probes)
    retrieval = probe_groups(scored_answer, PROBE_TASKS, settings.lengths, count, texts["prose"], tokenizer, probes)
    loss = perplexity_groups(
        settings.lengths,
        settings.samples(settings.windows),
        texts,
        scored_tokens=settings.scored_tokens,
        seed=settings.seed,
    )
    groups = sorted([*retrieval, *loss], key=lambda group: group.tokens)
    identity = backend.identity() | {
        "lengths": settings.lengths,
        "first_samples": prompts_digest(first_prompts(groups, None)),
        "texts": {name: haystack.digest() for name, haystack in texts.items()},
        "scored_tokens": settings.scored_tokens,
        "probes": dataclasses.asdict(probes),
    }
    with Journal(out / "journal.jsonl", identity) as journal:
        arms = [Arm(view, view) for view in VIEWS]
        if heads is not None:
            arms.append(Arm("heads", "elastic", modes_LK=tuple(map(tuple, heads.modes().tolist()))))
        records = measure(backend, None, groups, arms, journal, batch_tokens=settings.batch_tokens)
        prefill = {str(length): _prefill(backend, heads, retrieval, length, journal) for length in settings.lengths}
    rows = retrieval_rows(records, settings.lengths), loss_rows(records, settings.lengths)
    report = RouterReport(
        command_line("eval router", settings),
        identity | {"router": backend.router},
        program(),
        *rows,
        headline(records, *rows),
        prefill,
    )
    results = dataclasses.asdict(report)
    if report.headline.heads_msr is None:  # as results were before there were calibrated heads
        for name in ("heads_kept", "heads_kept_interval", "heads_msr"):
            del results["headline"][name]
    write_json(out / "results.json", results)
    write_text(out / "results.md", render_markdown(report))
    draw_report(report, out / "results.png")
    return report


def _prefill(
    backend: ModelBackend, heads: Heads | None, retrieval: Sequence[Group], length: int, journal: Journal
) -> dict[str, float]:
    """Seconds of the first probe of each task; the views of one length are always timed together."""
    key = f"prefill/{length}/{backend.router}"
    routings: dict[str, Imposed | None] = {"full": "full", "sparse": "sparse", "elastic": None}
    if heads is not None:
        key += f"/{modes_digest(heads.modes())}"
        routings["heads"] = heads
    if key not in journal:
        prompts = [group.build(0).fields["prompt_ids"] for group in retrieval if group.tokens == length]
        journal.append({key: prefill_seconds(backend.model, prompts, routings, tokens=length)})
    return journal[key]

"""The router report: runs every measurement through one journal and writes `results.json`, `.md` and `.png`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from elastic_jax.cli.model import load_model, load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.files import write_json, write_text
from elastic_jax.journal import Journal
from elastic_jax.model import ElasticForCausalLM
from eval.harness.backends.local import ModelBackend, with_router_settings
from eval.harness.provenance import command_line, program, prompts_digest
from eval.harness.runner import first_prompts, pending_tokens, run_groups, token_progress
from eval.harness.timing import prefill_seconds
from eval.samples import VIEWS, Arm
from eval.suites.haystack import Haystack, code_texts, prose_texts
from eval.suites.perplexity import perplexity_groups
from eval.suites.probes import ProbeConfig
from eval.suites.router.figure import draw_report
from eval.suites.router.markdown import render_markdown
from eval.suites.router.report import summarise
from eval.suites.router.retrieval import retrieval_groups
from eval.suites.router.settings import RouterReportSettings
from eval.tasks import Group


def run_router_report(settings: RouterReportSettings, out: Path) -> dict[str, Any]:
    """Measures what `out/journal.jsonl` lacks, writes the report into `out` and returns its contents.

    Raises:
        DataError: the texts do not suffice, or the journal in `out` was made under other settings.
    """
    model = with_router_settings(
        load_model(settings), sink_blocks=settings.sink_blocks, local_blocks=settings.local_blocks
    )
    backend = ModelBackend(model)
    tokenizer = load_model_tokenizer(settings)
    sparse = model.config.router
    probe_config = ProbeConfig(
        sink_tokens=sparse.sink_blocks * sparse.block_size,
        local_tokens=sparse.local_blocks * sparse.block_size,
        distractors=settings.distractors,
        seed=settings.seed,
    )
    if max(settings.lengths) > model.config.max_position_embeddings:
        raise ConfigError(
            f"lengths has {max(settings.lengths)}; the model has {model.config.max_position_embeddings} positions."
        )
    haystacks = {
        "prose": Haystack(prose_texts(settings.texts, "evaluation"), tokenizer),
        "code": Haystack(code_texts(settings.code, "evaluation"), tokenizer),
    }
    retrieval = retrieval_groups(
        settings.lengths, settings.samples(settings.probes), haystacks["prose"], tokenizer, probe_config
    )
    perplexity = perplexity_groups(
        settings.lengths,
        settings.samples(settings.windows),
        haystacks,
        scored_tokens=settings.scored_tokens,
        seed=settings.seed,
    )
    groups = sorted([*retrieval, *perplexity], key=lambda group: group.tokens)
    identity = backend.identity() | {
        "lengths": settings.lengths,
        "first_samples": prompts_digest(first_prompts(groups, None)),
        "texts": {name: haystack.digest() for name, haystack in haystacks.items()},
        "scored_tokens": settings.scored_tokens,
        "probes": dataclasses.asdict(probe_config),
    }
    arms = [Arm(view, view) for view in VIEWS]
    labels = {arm.view: backend.label(arm) for arm in arms}
    with Journal(out / "journal.jsonl", identity) as journal:
        with token_progress(pending_tokens(groups, arms, backend, journal)) as advance:
            for tokens in run_groups(backend, None, groups, arms, journal, batch_tokens=settings.batch_tokens):
                advance(tokens)
        _time_prefill(model, retrieval, backend.router, journal)
        report = {
            "command": command_line("eval router", settings),
            "settings": identity | {"router": backend.router},
            "program": program(),
            **summarise(retrieval, perplexity, labels, journal),
            "prefill": {str(n): journal[_time_key(n, backend.router)] for n in settings.lengths},
        }
    write_json(out / "results.json", report)
    write_text(out / "results.md", render_markdown(report))
    draw_report(report, out / "results.png")
    return report


def _time_key(length: int, digest: str) -> str:
    return f"prefill/{length}/{digest}"


def _time_prefill(model: ElasticForCausalLM, retrieval: list[Group], digest: str, journal: Journal) -> None:
    """Times the first probe of each task at each length; the views of one length are always timed together."""
    for length in sorted({group.tokens for group in retrieval}):
        key = _time_key(length, digest)
        if key not in journal:
            prompts = [group.build(0).fields["prompt_ids"] for group in retrieval if group.tokens == length]
            journal.append({key: prefill_seconds(model, prompts, tokens=length)})

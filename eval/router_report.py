"""The router report: runs every measurement through one journal and writes `results.json`, `.md` and `.png`."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from elastic_jax.cli_model import load_model, load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.model import ElasticForCausalLM, from_params, to_params
from eval.cli_router import RouterReportSettings
from eval.digests import backbone_digest, router_digest, samples_digest
from eval.figure import draw_report
from eval.haystack import Haystack, code_texts, prose_texts
from eval.journal import Journal
from eval.markdown import render_markdown
from eval.perplexity import perplexity_groups
from eval.prefill_time import prefill_seconds
from eval.probes import ProbeConfig
from eval.progress import token_progress
from eval.report import summarise
from eval.retrieval import retrieval_groups
from eval.runner import Group, Work, pending_tokens, run_groups
from eval.scoring import Scorer


def run_router_report(settings: RouterReportSettings, out: Path) -> dict[str, Any]:
    """Measures what `out/journal.jsonl` lacks, writes the report into `out` and returns its contents.

    Raises:
        DataError: the texts do not suffice, or the journal in `out` was made under other settings.
    """
    model = _with_blocks(load_model(settings), settings)
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
    groups = sorted([*retrieval, *perplexity], key=lambda group: group.length)
    identity = {
        "lengths": settings.lengths,
        "first_samples": samples_digest([group.build(0) for group in groups]),
        "backbone": backbone_digest(model),
        "dtype": str(model.head_kernel().dtype),
        "blocks": [sparse.sink_blocks, sparse.local_blocks, sparse.block_size],
        "texts": {name: haystack.digest() for name, haystack in haystacks.items()},
        "scored_tokens": settings.scored_tokens,
        "probes": dataclasses.asdict(probe_config),
    }
    digest = router_digest(model)
    works = (Work("full", "full"), Work("sparse", "sparse"), Work("elastic", f"elastic@{digest}"))
    with Journal(out / "journal.jsonl", identity) as journal:
        with token_progress(pending_tokens(groups, works, journal)) as advance:
            for tokens in run_groups(Scorer(model), groups, works, journal, batch_tokens=settings.batch_tokens):
                advance(tokens)
        _time_prefill(model, retrieval, digest, journal)
        report = {
            "command": _command(settings),
            "settings": identity | {"router": digest},
            "program": _program(),
            **summarise(retrieval, perplexity, works, journal),
            "prefill": {str(n): journal[_time_key(n, digest)] for n in settings.lengths},
        }
    (out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
    (out / "results.md").write_text(render_markdown(report))
    draw_report(report, out / "results.png")
    return report


def _command(settings: RouterReportSettings) -> str:
    """What repeats the run, with folders by their last name: where they are is this machine's affair."""
    words = ["elastic-jax eval router"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            shown = [Path(v).name if isinstance(v, str) else str(v) for v in values]
            words += [f"--{field.name.replace('_', '-')}", *shown]
    return " ".join(words)


def _with_blocks(model: ElasticForCausalLM, settings: RouterReportSettings) -> ElasticForCausalLM:
    asked = {name: getattr(settings, name) for name in ("sink_blocks", "local_blocks")}
    changes = {name: value for name, value in asked.items() if value is not None}
    if not changes:
        return model
    router = dataclasses.replace(model.config.router, **changes)
    return from_params(dataclasses.replace(model.config, router=router), to_params(model), source=model.source)


def _time_key(length: int, digest: str) -> str:
    return f"prefill/{length}/{digest}"


def _time_prefill(model: ElasticForCausalLM, retrieval: list[Group], digest: str, journal: Journal) -> None:
    """Times the first probe of each task at each length; the views of one length are always timed together."""
    for length in sorted({group.length for group in retrieval}):
        key = _time_key(length, digest)
        if key not in journal:
            prompts = [group.build(0).prompt_ids for group in retrieval if group.length == length]
            journal.append({key: prefill_seconds(model, prompts, tokens=length)})


def _program() -> dict[str, str]:
    """What the figures were measured with."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "elastic_jax": metadata.version("elastic-jax"),
        "commit": commit or "not in a git checkout",
        "jax": jax.__version__,
        "device": f"{jax.devices()[0].device_kind} ({platform.machine()})",
    }

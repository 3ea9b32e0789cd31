"""`bench cache`: runs what is asked through journals and writes `cache.json`, `cache.md` and `cache.png`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from elastic_jax.cli_model import load_model, load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.model import ElasticForCausalLM
from eval.cache_quality import batches, cache_kinds, run_quality
from eval.cli_cache import BenchCacheSettings
from eval.digests import backbone_digest, router_digest, samples_digest
from eval.haystack import Haystack, code_texts, prose_texts
from eval.journal import Journal
from eval.perplexity import perplexity_groups
from eval.probes import ProbeConfig
from eval.progress import token_progress
from eval.retrieval import retrieval_groups
from eval.runner import Group


def run_cache_bench(settings: BenchCacheSettings, out: Path) -> dict[str, Any]:
    """Measures what the journals in `out` lack, writes the report there and returns its contents.

    Raises:
        DataError: the texts do not suffice, or a journal in `out` was made under other settings.
        ConfigError: the model has fewer positions than are asked for.
    """
    model = load_model(settings)
    longest = max(settings.tokens + settings.steps if settings.speed else 0, settings.quality_tokens)
    if longest > model.config.max_position_embeddings:
        raise ConfigError(f"{longest} tokens are asked for; the model has {model.config.max_position_embeddings}.")
    report: dict[str, Any] = {}
    if settings.quality:
        report["quality"] = _quality(model, settings, out)
    return report


def _quality(model: ElasticForCausalLM, settings: BenchCacheSettings, out: Path) -> dict[str, Any]:
    groups, texts = _groups(model, settings)
    kinds = cache_kinds(settings.bits)
    identity = {
        "first_samples": samples_digest([group.build(0) for group in groups]),
        "tokens": settings.quality_tokens,
        "scored_tokens": settings.scored_tokens,
        "backbone": backbone_digest(model),
        "dtype": str(model.head_kernel().dtype),
        "view": settings.view,
        "router": router_digest(model) if settings.view == "elastic" else None,
        "texts": texts,
    }
    with Journal(out / "quality.jsonl", identity) as journal:
        left = sum(len(todo) for *_, todo in batches(groups, kinds, journal, settings.rows))
        with token_progress(left) as advance:
            for done in run_quality(model, groups, kinds, journal, rows=settings.rows, view=settings.view):
                advance(done)
    return {}


def _groups(model: ElasticForCausalLM, settings: BenchCacheSettings) -> tuple[list[Group], dict[str, str]]:
    tokenizer = load_model_tokenizer(settings)
    haystacks = {
        "prose": Haystack(prose_texts(settings.texts, "evaluation"), tokenizer),
        "code": Haystack(code_texts(settings.code, "evaluation"), tokenizer),
    }
    sparse = model.config.router
    probes = ProbeConfig(
        sink_tokens=sparse.sink_blocks * sparse.block_size,
        local_tokens=sparse.local_blocks * sparse.block_size,
        seed=settings.seed,
    )
    length = (settings.quality_tokens,)
    loss = perplexity_groups(
        length, settings.windows, haystacks, scored_tokens=settings.scored_tokens, seed=settings.seed
    )
    retrieval = retrieval_groups(length, settings.probes, haystacks["prose"], tokenizer, probes)
    return [*loss, *retrieval], {name: haystack.digest() for name, haystack in haystacks.items()}

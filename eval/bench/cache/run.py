"""`bench cache`: runs what is asked through journals and writes `cache.json`, `cache.md` and `cache.png`."""

from __future__ import annotations

import random
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.cli.model import load_model, load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.files import write_json, write_text
from elastic_jax.generation import prefill
from elastic_jax.journal import Journal
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.pages import tree_bytes
from elastic_jax.layout import check_positions, pad_rows
from elastic_jax.model import ElasticForCausalLM, require_routers
from elastic_jax.weights import save_pretrained
from eval.bench.cache.page import draw_quality, render_cache_report
from eval.bench.cache.quality import (
    CacheBackend,
    QualityJournal,
    cache_kinds,
    in_batches,
    question_through_cache,
    samples_digest,
)
from eval.bench.cache.speed import Plan, blank_cache, largest_batch, stepper
from eval.bench.cache.summary import UNQUANTISED, summarise_quality
from eval.bench.settings import BenchCacheSettings
from eval.bench.torch import threads, torch_process
from eval.harness.provenance import backbone_digest, command_line, modes_digest, router_digest
from eval.harness.runner import first_prompts, measure
from eval.harness.timing import fastest
from eval.samples import Arm
from eval.suites.haystack import Haystack, prose_and_code, prose_texts
from eval.suites.needles import probe_groups
from eval.suites.perplexity import perplexity_groups
from eval.suites.probes import PROBE_TASKS, unseen_by_sparse_heads


def run_cache_bench(settings: BenchCacheSettings, out: Path) -> dict[str, Any]:
    """Measures what the journals in `out` lack, writes the report there and returns its contents.

    Raises:
        DataError: the texts do not suffice, or a journal in `out` was made under other settings.
        ConfigError: the model has neither calibrated heads nor trained routers, or fewer positions than are asked for,
            or torch fails.
    """
    model = load_model(settings)
    if model.heads is None:
        require_routers(model, "bench cache")
    speed, quality = settings.tokens + settings.room, settings.quality_tokens
    longest = max(speed if settings.speed else 0, quality if settings.quality else 0)
    check_positions(model.config, longest, f"{longest} tokens are asked for", "Ask for fewer", ConfigError)
    report: dict[str, Any] = {"command": command_line("bench cache", settings), "device": jax.devices()[0].device_kind}
    if settings.speed:
        report["speed"] = _speed(model, settings, out)
    if settings.quality:
        report["quality"] = _quality(model, settings, out)
    write_json(out / "cache.json", report)
    write_text(out / "cache.md", render_cache_report(report))
    if settings.quality and settings.windows:
        draw_quality(report["quality"], out / "cache.png")
    return report


def _speed(model: ElasticForCausalLM, settings: BenchCacheSettings, out: Path) -> dict[str, Any]:
    """Speed in every dtype, at equal batch and at the largest that fits; what is compared is timed in one run."""
    identity = {
        name: getattr(settings, name) for name in ("bits", "tokens", "batch", "budget_mib", "steps", "rounds", "dtypes")
    }
    identity |= {"backbone": backbone_digest(model), "router": _decides(model), "torch": settings.torch_python}
    with Journal(out / "speed.jsonl", identity) as journal:
        for dtype in settings.dtypes:
            todo = [name for name in ("equal", "budget") if f"{dtype}/{name}" not in journal]
            if not todo:
                continue
            model = load_model(replace(settings, dtype=dtype))
            mode_LK = _routing(model, settings)
            for name in todo:
                measure = _equal_batch if name == "equal" else _within_budget
                journal.append({f"{dtype}/{name}": measure(model, mode_LK, settings)})
        return {
            name: {dtype: journal[f"{dtype}/{name}"] for dtype in settings.dtypes} for name in ("equal", "budget")
        } | {"tokens": settings.tokens}


def _plans(mode_LK: np.ndarray, settings: BenchCacheSettings) -> dict[str, Plan]:
    """A plan for every number of bits, with all heads full and as routed."""
    routings = {"full": np.zeros_like(mode_LK), "elastic": mode_LK}
    return {
        f"{UNQUANTISED if bits == 16 else f'{bits} bits'}, {name}": Plan(
            CacheConfig(bits=bits), mode, settings.batch, settings.tokens, settings.room
        )
        for bits in settings.bits
        for name, mode in routings.items()
    }


def _equal_batch(model: ElasticForCausalLM, mode_LK: np.ndarray, settings: BenchCacheSettings) -> dict[str, Any]:
    dtype = model.head_kernel().dtype
    plans = _plans(mode_LK, settings)
    caches = {kind: blank_cache(plan, model.config, dtype) for kind, plan in plans.items()}
    sizes = {kind: tree_bytes(cache) for kind, cache in caches.items()}
    programs = {kind: stepper(model, cache, settings.steps) for kind, cache in caches.items()}
    del caches
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        if settings.torch_python is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "model"
            save_pretrained(model, folder)
            torch = stack.enter_context(torch_process(settings.torch_python, "torch_cache.py"))
            job = {"model": str(folder), "dtype": str(dtype), "threads": threads(), "steps": 1}
            for kind, found in torch(job | {"rows": settings.batch, "tokens": settings.tokens}).items():
                if isinstance(found, int):
                    sizes[kind], programs[kind] = found, partial(torch, kind)
                else:
                    missing[kind] = found
        seconds = fastest(programs, settings.rounds)
    rows = [_row(kind, dtype, settings.batch, sizes[kind], spent) for kind, spent in seconds.items()]
    return {"rows": rows, "missing": missing, "msr": float(mode_LK.mean())}


def _within_budget(model: ElasticForCausalLM, mode_LK: np.ndarray, settings: BenchCacheSettings) -> dict[str, Any]:
    """Every kind at the largest batch whose cache fits, one after the other: together they would not fit here."""
    dtype, config = model.head_kernel().dtype, model.config
    plans = _plans(mode_LK, settings)
    budget = (settings.budget_mib or 0) << 20
    budget = budget or tree_bytes(blank_cache(plans[f"{UNQUANTISED}, full"], config, dtype))
    rows = []
    for kind, plan in plans.items():
        plan = replace(plan, rows=largest_batch(plan, config, dtype, budget))
        if not plan.rows:
            continue
        cache = blank_cache(plan, config, dtype)
        size = tree_bytes(cache)
        program = stepper(model, cache, settings.steps)
        del cache
        seconds = fastest({kind: program}, settings.rounds)[kind]
        rows.append(_row(kind, dtype, plan.rows, size, seconds))
    return {"rows": rows, "budget": budget}


def _row(kind: str, dtype: Any, rows: int, size: int, seconds: float) -> dict[str, Any]:
    """One kind of cache at one batch; `seconds` are those of one decode step of all rows."""
    return {"kind": kind, "dtype": str(dtype), "rows": rows, "cache_bytes": size, "seconds": seconds}


def _decides(model: ElasticForCausalLM) -> str:
    """Digest of what decides which heads are sparse."""
    return router_digest(model) if model.heads is None else modes_digest(model.heads.modes())


def _routing(model: ElasticForCausalLM, settings: BenchCacheSettings) -> np.ndarray:
    """Sparse heads `[L, K]` of one prompt of real text, as the calibrated heads, or without any the routers decide."""
    haystack = Haystack(prose_texts(settings.texts, "evaluation"), load_model_tokenizer(settings))
    ids = [token for piece in haystack.excerpt(random.Random(settings.seed), settings.tokens) for token in piece.ids]
    padded, lengths = map(jnp.asarray, pad_rows([ids], settings.tokens))
    return np.asarray(prefill(model, padded, lengths, None).routing.mode[:, 0])


def _quality(model: ElasticForCausalLM, settings: BenchCacheSettings, out: Path) -> dict[str, Any]:
    """Loss and retrieval through every kind of cache."""
    tokenizer = load_model_tokenizer(settings)
    texts = prose_and_code(prose_texts(settings.texts, "evaluation"), settings.code, tokenizer)
    tokens, seed = settings.quality_tokens, settings.seed
    probes = unseen_by_sparse_heads(model.config.router, seed=seed)
    # One sample of what is not measured too: the first samples are part of what the journal is kept for.
    windows, count = max(settings.windows, 1), max(settings.probes, 1)
    loss = perplexity_groups((tokens,), windows, texts, scored_tokens=settings.scored_tokens, seed=seed)
    retrieval = probe_groups(question_through_cache, PROBE_TASKS, (tokens,), count, texts["prose"], tokenizer, probes)
    kinds = cache_kinds(settings.bits, settings.key_transforms)
    identity = {
        "first_samples": samples_digest(first_prompts([*loss, *retrieval], None)),
        "tokens": tokens,
        "scored_tokens": settings.scored_tokens,
        "backbone": backbone_digest(model),
        "dtype": str(model.head_kernel().dtype),
        "view": settings.view,
        "router": _decides(model) if settings.view == "elastic" else None,
        "texts": {name: haystack.digest() for name, haystack in texts.items()},
    }
    loss, retrieval = (loss if settings.windows else []), (retrieval if settings.probes else [])
    parts = [part for group in (*loss, *retrieval) for part in in_batches(group, settings.rows)]
    backend = CacheBackend(model, kinds, view=settings.view, rows=settings.rows)
    with QualityJournal(out / "quality.jsonl", identity) as journal:
        arms = [Arm(kind) for kind in kinds]
        measure(backend, None, parts, arms, journal, batch_tokens=settings.rows * tokens)
        return summarise_quality(loss, retrieval, kinds, journal) | {"settings": identity}

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
from eval.bench.cache.quality import CacheBackend, QualityJournal, cache_kinds, in_batches, probe_groups
from eval.bench.cache.speed import Plan, blank_cache, largest_batch, stepper
from eval.bench.cache.summary import UNQUANTISED, summarise_quality
from eval.bench.settings import BenchCacheSettings
from eval.bench.torch import threads, torch_process
from eval.harness.provenance import backbone_digest, command_line, modes_digest, router_digest, tokens_digest
from eval.harness.runner import measure
from eval.harness.timing import fastest
from eval.samples import Arm
from eval.suites.haystack import Haystack, code_texts, prose_texts
from eval.suites.perplexity import perplexity_groups
from eval.suites.probes import ProbeConfig
from eval.tasks import Group


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
    loss, retrieval, texts = _groups(model, settings)
    kinds = cache_kinds(settings.bits, settings.key_transforms)
    identity = {
        "first_samples": tokens_digest([group.build(0) for group in [*loss, *retrieval]]),
        "tokens": settings.quality_tokens,
        "scored_tokens": settings.scored_tokens,
        "backbone": backbone_digest(model),
        "dtype": str(model.head_kernel().dtype),
        "view": settings.view,
        "router": _decides(model) if settings.view == "elastic" else None,
        "texts": texts,
    }
    loss, retrieval = ([group for group in groups if group.count] for groups in (loss, retrieval))
    parts = [part for group in (*loss, *retrieval) for part in in_batches(group, settings.rows)]
    backend = CacheBackend(model, kinds, view=settings.view, rows=settings.rows)
    with QualityJournal(out / "quality.jsonl", identity) as journal:
        batch_tokens = settings.rows * settings.quality_tokens
        measure(backend, None, parts, [Arm(kind) for kind in kinds], journal, batch_tokens=batch_tokens)
        return summarise_quality(loss, retrieval, kinds, journal) | {"settings": identity}


def _groups(model: ElasticForCausalLM, settings: BenchCacheSettings) -> tuple[list[Group], list[Group], dict[str, str]]:
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
    loss = perplexity_groups(
        (settings.quality_tokens,),
        settings.windows,
        haystacks,
        scored_tokens=settings.scored_tokens,
        seed=settings.seed,
    )
    retrieval = probe_groups(settings.quality_tokens, settings.probes, haystacks["prose"], tokenizer, probes)
    return loss, retrieval, {name: haystack.digest() for name, haystack in haystacks.items()}

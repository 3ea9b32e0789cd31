"""What a quantised cache costs in quality: the same texts and questions read through caches of every kind.

A prompt is read once, exactly, as generation reads it. Each kind of cache is then filled from its keys and values, and
the known continuation is fed token by token through `decode_step`, the program of generation: the tokens fed are cached
and flushed as they are in generation, and every scored token is predicted from the cache, but for the first of a window
of text, which the exact prefill predicts.

Figures of the cache report, computed from the journal's scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.generation import Cache, Prefilled, decode_step, make_cache, prefill
from elastic_jax.journal import Journal
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.config import KeyTransform
from elastic_jax.layout import pad_rows
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import gates_from
from eval.report.tables import paired_difference, wilson_interval
from eval.samples import Sample, View
from eval.suites.haystack import Haystack
from eval.suites.probes import PROBE_TASKS, ProbeConfig, ProbeTask, make_probe
from eval.tasks import Group, likelihood_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ANSWER_STEP = 8
"""Continuations are padded to a multiple of this many tokens, so that few programs are compiled."""


def cache_kinds(bits: Sequence[int], transforms: Sequence[KeyTransform]) -> dict[str, CacheConfig]:
    """Every kind to compare, by label: 16 bits once, fewer with each key transform, with and without outliers."""
    kinds = {}
    for b in bits:
        for transform in ("none",) if b == 16 else transforms:
            for outliers in (CacheConfig().outliers, 0):
                config = CacheConfig(bits=b, key_transform=transform, outliers=outliers)
                kinds.setdefault("16" if b == 16 else f"{b}/{transform}/{outliers}", config)
    return kinds


def fed_fields(prompt_ids: Sequence[int], continuation_ids: Sequence[int], *, unscored: int = 0) -> dict[str, Any]:
    """Fields of a sample of which the first `unscored` tokens of the continuation are fed without being scored."""
    return {"prompt_ids": prompt_ids, "continuation_ids": continuation_ids, "unscored": unscored}


def probe_groups(
    length: int, count: int, haystack: Haystack, tokenizer: PreTrainedTokenizerBase, config: ProbeConfig
) -> list[Group]:
    """`count` probes of every task whose text is the prompt and whose question goes through the cache, so that the
    needle has to be read from the cache for every token of the answer."""

    def group(task: ProbeTask) -> Group:
        def uid(index: int) -> str:
            return f"{task}/{length}/{index}"

        def build(index: int) -> Sample:
            probe = make_probe(task, length, index, haystack, tokenizer, config)
            text, question = probe.prompt_ids[: probe.question_start], probe.prompt_ids[probe.question_start :]
            return Sample(uid(index), fed_fields(text, (*question, *probe.answer_ids), unscored=len(question)))

        return Group(likelihood_task(task, main_score="exact"), [uid(index) for index in range(count)], build, length)

    return [group(task) for task in PROBE_TASKS]


def quality_key(group: Group, index: int, kind: str) -> str:
    """Name of one score in the journal."""
    return f"{group.uids[index]}/{kind}"


def batches(
    groups: Sequence[Group], kinds: Mapping[str, CacheConfig], journal: Journal, rows: int
) -> Iterator[tuple[Group, list[int], list[str]]]:
    """What is left to do: sample numbers that share a prefill, and the kinds that some of them lack."""
    for group in groups:
        for start in range(0, group.count, rows):
            numbers = list(range(start, min(start + rows, group.count)))
            todo = [kind for kind in kinds if any(quality_key(group, n, kind) not in journal for n in numbers)]
            if todo:
                yield group, numbers, todo


def run_quality(
    model: ElasticForCausalLM,
    groups: Sequence[Group],
    kinds: Mapping[str, CacheConfig],
    journal: Journal,
    *,
    rows: int,
    view: View,
) -> Iterator[int]:
    """Scores what the journal lacks; yields 1 for each batch and kind, after its results are on disk.

    `rows` samples at a time share one prefill; a journal record has `exact` (every token was the most likely one),
    `log_prob` (mean of a token, nats), `tokens`, and `frozen` (share of heads that stopped tracing outliers).
    """
    for group, numbers, todo in batches(groups, kinds, journal, rows):
        samples = [group.build(n) for n in numbers]
        ids, lengths = pad_rows([sample.fields["prompt_ids"] for sample in samples], group.tokens, rows)
        gates = gates_from(None if view == "elastic" else view, model.config, rows)
        prompt = prefill(model, jnp.asarray(ids), jnp.asarray(lengths), gates)
        for kind in todo:
            records = score_continuations(model, prompt, lengths, kinds[kind], samples)
            keys = [quality_key(group, n, kind) for n in numbers]
            journal.append(dict(zip(keys, records, strict=True)))
            yield 1


def score_continuations(
    model: ElasticForCausalLM, prompt: Prefilled, lengths_B: np.ndarray, config: CacheConfig, samples: Sequence[Sample]
) -> list[dict[str, float]]:
    """One record for each sample, see `run_quality`; row b of the prompts belongs to sample b, further rows to none."""
    counts = np.array([len(sample.fields["continuation_ids"]) for sample in samples])
    skipped = np.array([sample.fields.get("unscored", 0) for sample in samples])
    width = -(-int(counts.max()) // ANSWER_STEP) * ANSWER_STEP
    targets, _ = pad_rows([sample.fields["continuation_ids"] for sample in samples], width, len(lengths_B))
    state = make_cache(config, model.config, prompt.kv, lengths_B, prompt.routing.mode, width)
    log_prob, hit, frozen = (
        np.asarray(x)[: len(samples)] for x in _feed(model, state, prompt.logits_BV, jnp.asarray(targets))
    )
    valid = (np.arange(width) >= skipped[:, None]) & (np.arange(width) < counts[:, None])
    scored = counts - skipped
    columns = ((hit | ~valid).all(-1), (log_prob * valid).sum(-1) / scored, scored, frozen)
    names = ("exact", "log_prob", "tokens", "frozen")
    return [dict(zip(names, row, strict=True)) for row in zip(*(x.tolist() for x in columns), strict=True)]


@nnx.jit
def _feed(
    model: ElasticForCausalLM, state: Cache, logits_BV: jax.Array, targets_BW: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-probability and argmax hit of each target `[B, W]`, and the share of frozen heads `[B]`."""

    def judge(logits_BV: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = jnp.take_along_axis(logits_BV, target_B[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits_BV, axis=-1), logits_BV.argmax(-1) == target_B

    def step(carry: tuple[Cache, jax.Array], target_B: jax.Array) -> tuple:
        state, logits_BV = carry
        return decode_step(model, state, target_B), judge(logits_BV, target_B)

    *fed, last = jnp.split(targets_BW.T, [targets_BW.shape[1] - 1])
    (state, logits_BV), judged = jax.lax.scan(step, (state, logits_BV), fed[0])
    log_prob, hit = (jnp.concatenate([x, y[None]]).T for x, y in zip(judged, judge(logits_BV, last[0]), strict=True))
    frozen = getattr(state, "frozen", None)
    frozen_B = jnp.zeros(len(targets_BW)) if frozen is None else frozen.mean((0, 2))
    return log_prob, hit, frozen_B


EXACT = "16"
"""Label of the cache without quantisation in the journal."""
UNQUANTISED = "unquantised"
"""Its name in reports: it has the bits of the model dtype."""


def summarise_quality(
    loss: Sequence[Group], retrieval: Sequence[Group], kinds: Mapping[str, CacheConfig], journal: Journal
) -> dict[str, Any]:
    """Rows of loss for each text and kind, rows of retrieval for each kind over all probes, and gaps closed; rows only
    of what `loss` and `retrieval` hold.

    `rise` is the loss minus that of the exact cache on the same windows, nats per token. `closed` has, for each text,
    number of bits and key transform, which share of the rise outlier tokens take away: of the rise with that transform
    (`own`), and of the plain rise (`plain`); None where the rise is within two standard errors of nothing.
    """
    losses = {group.task.name: {kind: -_column([group], kind, journal, "log_prob") for kind in kinds} for group in loss}
    loss_rows = []
    for task, by_kind in losses.items():
        for kind, values in by_kind.items():
            rise, error = paired_difference(values, by_kind[EXACT])
            nll = float(values.mean())
            row = {"task": task, "kind": kind, "n": len(values), "perplexity": math.exp(nll)}
            loss_rows.append(row | {"rise": rise, "rise_error": error})
    retrieval_rows = []
    for kind in kinds if retrieval else ():
        exact = _column(retrieval, kind, journal, "exact")
        correct = int(exact.sum())
        retrieval_rows.append(
            {
                "kind": kind,
                "n": len(exact),
                "correct": correct,
                "interval": wilson_interval(correct, len(exact)),
                "by_task": {
                    group.task.name: int(_column([group], kind, journal, "exact").sum()) for group in retrieval
                },
                "answer_log_prob": float(_column(retrieval, kind, journal, "log_prob").mean()),
            }
        )
    return {"loss": loss_rows, "retrieval": retrieval_rows, "closed": _closed(loss_rows, kinds)}


def _column(groups: Sequence[Group], kind: str, journal: Journal, name: str) -> np.ndarray:
    keys = [quality_key(group, n, kind) for group in groups for n in range(group.count)]
    return np.array([journal[key][name] for key in keys], float)


def _closed(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, CacheConfig]) -> list[dict[str, Any]]:
    found = {(row["task"], row["kind"]): row for row in rows}

    def share(without: Mapping[str, Any], kept: Mapping[str, Any]) -> float | None:
        return 1 - kept["rise"] / without["rise"] if without["rise"] > 2 * without["rise_error"] else None

    closed = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for kind, config in kinds.items():
            if kind == EXACT or not config.outliers:
                continue
            own, plain = (f"{config.bits}/{transform}/0" for transform in (config.key_transform, "none"))
            shares = {
                name: share(found[task, base], found[task, kind]) for name, base in (("own", own), ("plain", plain))
            }
            closed.append({"task": task, "kind": kind} | shares)
    return closed

"""What a quantised cache costs in quality: the same texts and questions read through caches of every kind.

A prompt is read once, exactly, as generation reads it. Each kind of cache is then filled from its keys and values, and
the known continuation is fed token by token through `decode_step`, the program of generation: the tokens fed are cached
and flushed as they are in generation, and every scored token is predicted from the cache, but for the first of a window
of text, which the exact prefill predicts.

The arms are kinds of caches, and the journal and the report have a form of their own, so this is no `Benchmark`; groups
of samples and the loop that measures them are those of all benchmarks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import batched
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.generation import Cache, Prefilled, bucket, decode_step, make_cache, prefill
from elastic_jax.journal import Journal
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.config import KeyTransform
from elastic_jax.layout import pad_rows
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.program import model_program
from elastic_jax.routing import gates_from
from eval.harness.backends.local import check_ids
from eval.samples import Arm, Kind, Prompt, Reply, Sample, Showing, Tokens, View
from eval.suites.needles import scored_answer
from eval.tasks import Group, Task

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


def question_through_cache(name: str) -> Task:
    """Reads the text of a probe as the prompt and feeds its question through the cache, so that the needle has to be
    read from the cache for every token of the answer. Only the answer is scored."""
    return replace(scored_answer(name), template=_text_then_question)


def _text_then_question(sample: Sample, _: Showing) -> Tokens:
    prompt, start = sample.fields["prompt_ids"], sample.fields["question_start"]
    return Tokens(prompt[:start], (*prompt[start:], *sample.fields["continuation_ids"]))


def samples_digest(prompts: Iterable[Prompt]) -> str:
    """Digest of prompts in the form that journals of this report have."""
    digest = hashlib.sha256()
    for prompt in prompts:
        ids = list(prompt.prompt_ids), list(prompt.continuation_ids)
        digest.update(f"{prompt.sample.uid} {ids[0]} {ids[1]}\n".encode())
    return digest.hexdigest()[:12]


def in_batches(group: Group, rows: int) -> Iterator[Group]:
    """The group in parts of at most `rows` samples, so that all arms of a part can share its prefill."""
    for start in range(0, group.count, rows):
        uids = group.uids[start : start + rows]
        yield replace(group, uids=uids, build=lambda index, start=start: group.build(start + index))


class QualityJournal(Journal):
    """The journal of the cache report: under `UID/KIND` it keeps the numbers of a reply, where the journals of other
    benchmarks keep a whole record."""

    def __contains__(self, key: str) -> bool:
        return super().__contains__(_short(key))

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(_short(key))

    def append(self, values: Mapping[str, Any]) -> None:
        super().append({_short(key): record["numbers"] for key, record in values.items()})


def _short(key: str) -> str:
    """The journal's name of what the runner names `UID||KIND`; every sample is shown in one way only."""
    return key.replace("||", "/")


class CacheBackend:
    """Scores known continuations through a cache; the name of an arm says which.

    Numbers of a reply: `exact` (1 where every scored token was the most likely one), `log_prob` (mean of a scored
    token, nats), `tokens` (scored ones), and `frozen` (share of heads that stopped tracing outliers).
    """

    kinds: frozenset[Kind] = frozenset(("score",))
    max_tokens: int | None = None

    def __init__(self, model: ElasticForCausalLM, caches: Mapping[str, CacheConfig], *, view: View, rows: int):
        self._model, self._caches, self._view, self._rows = model, caches, view, rows
        self._read: tuple[tuple[Prompt, ...], Prefilled] | None = None
        """The last batch: arms that follow each other on the same prompts share one prefill."""

    def identity(self) -> dict[str, Any]:
        return {}

    def label(self, arm: Arm) -> str:
        return arm.name

    def run(
        self, kind: Kind, prompts: Sequence[Prompt], arm: Arm, *, batch_tokens: int, most_rows: int
    ) -> Iterator[tuple[Prompt, Reply]]:
        check_ids(prompts, self._model.config)
        tokens = bucket(max((len(prompt.prompt_ids) for prompt in prompts), default=1))
        for batch in batched(prompts, self._rows):
            ids, lengths = pad_rows([prompt.prompt_ids for prompt in batch], tokens, self._rows)
            if self._read is None or self._read[0] != batch:
                self._read = None  # frees the keys and values of the batch before
                gates = gates_from(None if self._view == "elastic" else self._view, self._model.config, self._rows)
                self._read = batch, prefill(self._model, jnp.asarray(ids), jnp.asarray(lengths), gates)
            replies = score_continuations(self._model, self._read[1], lengths, self._caches[arm.name], batch)
            yield from zip(batch, replies, strict=True)


def score_continuations(
    model: ElasticForCausalLM, read: Prefilled, lengths_B: np.ndarray, config: CacheConfig, prompts: Sequence[Prompt]
) -> list[Reply]:
    """One reply for each prompt, see `CacheBackend`; row b of `read` belongs to prompt b, further rows to none."""
    counts = np.array([len(prompt.continuation_ids) for prompt in prompts])
    # what is fed of the sample's own prompt is not scored
    skipped = np.array([len(prompt.sample.fields["prompt_ids"]) - len(prompt.prompt_ids) for prompt in prompts])
    width = -(-int(counts.max()) // ANSWER_STEP) * ANSWER_STEP
    targets, _ = pad_rows([prompt.continuation_ids for prompt in prompts], width, len(lengths_B))
    state = make_cache(config, model.config, read.kv, lengths_B, read.routing.mode, width)
    log_prob, hit, frozen = (
        np.asarray(x)[: len(prompts)] for x in _feed(model, state, read.logits_BV, jnp.asarray(targets))
    )
    valid = (np.arange(width) >= skipped[:, None]) & (np.arange(width) < counts[:, None])
    scored = counts - skipped
    columns = ((hit | ~valid).all(-1), (log_prob * valid).sum(-1) / scored, scored, frozen)
    names = ("exact", "log_prob", "tokens", "frozen")
    return [
        Reply(numbers=dict(zip(names, row, strict=True))) for row in zip(*(x.tolist() for x in columns), strict=True)
    ]


@model_program
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

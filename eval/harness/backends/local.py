"""Models that this library runs: generation, scores of given continuations, choice between options."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.errors import DataError, NumericsError, ShapeError
from elastic_jax.generation import bucket, end_ids, generate
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.layout import check_token_ids, pad_rows
from elastic_jax.model import ElasticForCausalLM, from_params, to_params
from elastic_jax.text.stops import answer_text, end_tokens
from eval.harness.provenance import backbone_digest, modes_digest, router_digest
from eval.harness.routing import needle_attention, read_routing
from eval.harness.scoring import Scorer, arm_gates
from eval.harness.thinking import is_thinking_tag, with_opening
from eval.samples import Arm, Kind, Prompt, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WIDTH_STEP = 16


class ModelBackend:
    """Runs an `ElasticForCausalLM`, greedily, in batches of prompts of about the same length."""

    kinds: frozenset[Kind] = frozenset(("generate", "score", "choose", "route", "attend"))

    def __init__(self, model: ElasticForCausalLM, tokenizer: PreTrainedTokenizerBase | None = None):
        """`tokenizer` turns generated tokens into text; scoring and choosing need none."""
        self.model = model
        self.max_tokens: int | None = model.config.positions
        self._tokenizer = tokenizer
        self._scorer = Scorer(model)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._thinking_tags = {
            number: token.content for number, token in added.items() if token.special and is_thinking_tag(token.content)
        }
        self.router = router_digest(model)
        self._met: set[tuple] = set()

    def identity(self) -> dict[str, Any]:
        sparse = self.model.config.router
        return {
            "backbone": backbone_digest(self.model),
            "dtype": str(self.model.head_kernel().dtype),
            "blocks": [sparse.sink_blocks, sparse.local_blocks, sparse.block_size],
            "pattern": sparse.pattern,
        }

    def label(self, arm: Arm) -> str:
        return arm_label(arm, self.router)

    def run(
        self, kind: Kind, prompts: Sequence[Prompt], arm: Arm, *, batch_tokens: int, most_rows: int
    ) -> Iterator[tuple[Prompt, Reply]]:
        ways = {"generate": self._generate, "score": self._score, "choose": self._choose, "route": self._route}
        ways["attend"] = self._attend
        check_ids(prompts, self.model.config)
        batches = list(length_batches(prompts, batch_tokens=batch_tokens, most_rows=most_rows))
        left = Counter(tokens for tokens, _, _ in batches)
        for tokens, rows, batch in batches:
            left[tokens] -= 1
            ask = (ways[kind], batch, arm, tokens, rows)
            replies = self._replies(*ask)
            if kind == "generate" and self._first_meeting(batch, arm, tokens, rows):
                replies = list(map(_untimed, replies)) if left[tokens] else self._replies(*ask)
            yield from zip(batch, replies, strict=True)

    def _replies(
        self, way: Callable[..., list[Reply]], batch: Sequence[Prompt], arm: Arm, tokens: int, rows: int
    ) -> list[Reply]:
        """Replies to a batch. Where numbers of one prompt overflow, that prompt fails and the others are run alone."""
        try:
            return way(batch, arm, tokens, rows)
        except NumericsError as error:
            if len(batch) == 1:
                return [Reply(error=str(error))]
            return [reply for prompt in batch for reply in self._replies(way, [prompt], arm, tokens, rows)]

    def _first_meeting(self, batch: Sequence[Prompt], arm: Arm, tokens: int, rows: int) -> bool:
        """Notes the shapes; whether none had them before, so that these times hold the compiler's."""
        new = max(prompt.max_new_tokens for prompt in batch)
        shape = (rows, tokens, new, arm.cache_bits, arm.view, arm.modes_LK is None)
        known = shape in self._met
        self._met.add(shape)
        return not known

    def _score(self, batch: Sequence[Prompt], arm: Arm, tokens: int, rows: int) -> list[Reply]:
        width = -(-max(len(prompt.continuation_ids) for prompt in batch) // _WIDTH_STEP) * _WIDTH_STEP
        scores = self._scorer.score(batch, arm, tokens=tokens, rows=rows, width=width)
        return [Reply(numbers=numbers) for numbers in scores]

    def _choose(self, batch: Sequence[Prompt], arm: Arm, tokens: int, rows: int) -> list[Reply]:
        chosen = self._scorer.choose(batch, arm, tokens=tokens, rows=rows)
        return [
            Reply(numbers={f"option_{i}": value for i, value in enumerate(values)} | numbers)
            for values, numbers in chosen
        ]

    def _route(self, batch: Sequence[Prompt], arm: Arm, tokens: int, rows: int) -> list[Reply]:
        return [
            Reply(numbers=numbers, details=details)
            for numbers, details in read_routing(self.model, batch, arm, tokens=tokens, rows=rows)
        ]

    def _attend(self, batch: Sequence[Prompt], arm: Arm, tokens: int, rows: int) -> list[Reply]:
        found = needle_attention(self.model, batch, tokens=tokens, rows=rows)
        return [Reply(details={"needle_attention": np.round(mass_LK, 6).tolist()}) for mass_LK in found]

    def _generate(self, batch: Sequence[Prompt], arm: Arm, tokens: int, rows: int) -> list[Reply]:
        assert self._tokenizer is not None
        new = max(prompt.max_new_tokens for prompt in batch)
        texts = [prompt.prompt_ids for prompt in batch]
        texts += texts[-1:] * (rows - len(batch))  # rows left over repeat the last prompt: they cost no new shape
        ids, lengths = pad_rows(texts, tokens)
        out = generate(
            self.model,
            jnp.asarray(ids),
            lengths=jnp.asarray(lengths),
            max_new_tokens=new,
            cache=CacheConfig(bits=arm.cache_bits),
            routing=arm_gates(arm, self.model.config, rows),
            router_bias=arm.router_bias,
            stop_tokens=end_tokens(self._tokenizer, end_ids(self.model.config)),
        )
        written, counts = np.asarray(out.tokens), np.asarray(out.lengths)
        replies = []
        for row, prompt in enumerate(batch):
            answer = written[row, : counts[row]][: prompt.max_new_tokens].tolist()
            text, cut = self._text(answer)
            stopped = cut or counts[row] < prompt.max_new_tokens or answer[-1] in self._tokenizer.all_special_ids
            numbers = out.routing.measures(lengths, self.model.config, row)
            numbers |= {
                "cache_bytes": out.cache_bytes / rows,
                "prefill_s": out.timings.prefill_s / rows,
                "decode_s": out.timings.decode_s / rows,
            }
            replies.append(
                Reply(
                    with_opening(prompt.thinking_tag, text),
                    len(answer),
                    "stop" if stopped else "length",
                    numbers,
                )
            )
        return replies

    def _text(self, ids: list[int]) -> tuple[str, bool]:
        """The text of a reply, without special tokens but those that say where its thinking is; and whether a stop
        string ended it."""
        assert self._tokenizer is not None
        pieces, start = [], 0
        for place in (*(place for place, token in enumerate(ids) if token in self._thinking_tags), len(ids)):
            text, cut = answer_text(self._tokenizer, ids[start:place])
            pieces.append(text)
            if cut or place == len(ids):
                return "".join(pieces), cut
            pieces.append(self._thinking_tags[ids[place]])
            start = place + 1
        raise AssertionError


def check_ids(prompts: Sequence[Prompt], config: ModelConfig) -> None:
    """Raises `DataError` for a prompt with token ids that the embedding table does not have."""
    for prompt in prompts:
        for ids in (prompt.prompt_ids, prompt.continuation_ids, *prompt.option_ids):
            try:
                if len(ids):
                    check_token_ids(ids, config)
            except ShapeError as error:
                raise DataError(f"sample {prompt.sample.uid}: {error}") from None


def _untimed(reply: Reply) -> Reply:
    numbers = {name: value for name, value in reply.numbers.items() if name not in ("prefill_s", "decode_s")}
    return dataclasses.replace(reply, numbers=numbers)


def arm_label(arm: Arm, router: str) -> str:
    """Names an arm in journal keys. The label of routed attention carries a digest of the router, and that of imposed
    modes one of these: another router leaves the baselines valid and never reads the results of this one."""
    if arm.modes_LK is not None:
        return f"{arm.name}@{modes_digest(arm.modes_LK)}"
    return f"{arm.name}@{router}" if arm.view == "elastic" else arm.name


def with_router_settings(model: ElasticForCausalLM, **changes: Any) -> ElasticForCausalLM:
    """The same weights under other router settings (`RouterConfig` fields); None leaves a setting as it is.

    Calibrated heads do not go along where a setting changes: they belong to the sparse heads of before.
    """
    wanted = {name: value for name, value in changes.items() if value is not None}
    if not wanted:
        return model
    router = dataclasses.replace(model.config.router, **wanted)
    changed = from_params(dataclasses.replace(model.config, router=router), to_params(model), source=model.source)
    changed.fresh_routers = model.fresh_routers
    return changed


def length_batches(
    prompts: Sequence[Prompt], *, batch_tokens: int, most_rows: int
) -> Iterator[tuple[int, int, list[Prompt]]]:
    """Padded length, rows and prompts of each batch, the longest first: what cannot be run fails early.

    Rows depend on the padded length alone, never on how many prompts are left, so that a restarted run meets the
    same shapes.
    """
    by_tokens: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        by_tokens[bucket(len(prompt) + max(map(len, prompt.option_ids), default=0))].append(prompt)
    for tokens in sorted(by_tokens, reverse=True):
        alike = by_tokens[tokens]
        rows = max(1, min(batch_tokens // tokens, most_rows))
        for start in range(0, len(alike), rows):
            yield tokens, rows, alike[start : start + rows]

"""Groups of probes: a pass key, a pair of key and value, or a fact in a real text, at chosen or random depths."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from eval.samples import Message, Rendered, Reply, Sample, Showing, Verdict
from eval.suites.haystack import Haystack
from eval.suites.metrics import cleaned, match_any
from eval.suites.probes import ProbeConfig, ProbeTask, make_probe
from eval.tasks import Group, Task, likelihood_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW_TOKENS = 24


def probe_groups(
    task_named: Callable[[str], Task],
    kinds: Sequence[ProbeTask],
    lengths: Sequence[int],
    count: int,
    haystack: Haystack,
    tokenizer: PreTrainedTokenizerBase,
    config: ProbeConfig,
    *,
    depths: Sequence[int | None] = (None,),
    new_tokens: int = 0,
) -> list[Group]:
    """`count` probes of each kind at each length and depth.

    Fields of a sample: `prompt` (text), `prompt_ids`, `continuation_ids` (the answer), `needle` (the first and the
    last + 1 token of the needle in the prompt), and `question_start` (the first token of the question in it).

    Args:
        task_named: makes the task that is asked, from the name of the kind.
        lengths: tokens of prompt and answer together, `new_tokens` included.
        depths: percent of the way from the beginning of the text to the question; None draws a depth for each sample.
        new_tokens: room for an answer that the model writes.
    """

    def group(kind: ProbeTask, length: int) -> Group:
        places = [(depth, index) for depth in depths for index in range(count)]
        uids = [f"{kind}/{length}/{index}" if d is None else f"{kind}/{length}/{d}/{index}" for d, index in places]

        def build(number: int) -> Sample:
            depth, index = places[number]
            wanted = dataclasses.replace(config, depth=None if depth is None else depth / 100)
            probe = make_probe(kind, length - new_tokens, index, haystack, tokenizer, wanted)
            fields = {
                "prompt": probe.prompt,
                "prompt_ids": probe.prompt_ids,
                "continuation_ids": probe.answer_ids,
                "needle": (probe.needle_start, probe.needle_end),
                "question_start": probe.question_start,
            }
            axes, notes = {"length": length}, {}
            if depth is not None:
                axes["depth"] = depth
                notes = {"needle": probe.needle, "needle_start": probe.needle_start, "needle_end": probe.needle_end}
            return Sample(uids[number], fields, (probe.answer,), axes, new_tokens, notes)

        return Group(task_named(kind), uids, build, length)

    return [group(kind, length) for length in lengths for kind in kinds]


def written_answer(name: str) -> Task:
    """Asks for the answer of a probe in words; score `match`: whether the reply contains it."""
    return Task(name, "generate", _text, _found, "match")


def scored_answer(name: str) -> Task:
    """Scores the known answer of a probe in one pass; `exact`: whether greedy decoding would write it."""
    return likelihood_task(name, main_score="exact")


def _text(sample: Sample, _: Showing) -> Rendered:
    return Rendered((Message.of("user", sample.fields["prompt"]),), chat=False)


def _found(sample: Sample, _: Showing, reply: Reply) -> Verdict:
    return Verdict({"match": match_any(reply.text, sample.references)}, "ok" if cleaned(reply.text) else "empty")

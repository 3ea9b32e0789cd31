"""Depth x length grids: a pass key, a pair of key and value, or a fact at a chosen depth of a real text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.samples import Message, Rendered, Reply, Sample, Showing, Tokens, Verdict
from eval.suites.haystack import Haystack
from eval.suites.metrics import cleaned, match_any
from eval.suites.probes import ProbeConfig, ProbeTask, make_probe
from eval.tasks import Group, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEW_TOKENS = 24


def needle_groups(
    tasks: Sequence[ProbeTask],
    lengths: Sequence[int],
    depths: Sequence[int],
    count: int,
    haystack: Haystack,
    tokenizer: PreTrainedTokenizerBase,
    config: ProbeConfig,
    *,
    generate: bool,
) -> list[Group]:
    """`count` probes of each task at each length (tokens) and depth (percent of the way to the question).

    Args:
        generate: ask for the answer and look for it in the reply; else score the known answer, in one pass.
    """

    def group(task: ProbeTask, length: int) -> Group:
        kind = (
            Task(task, "generate", _text, _found, "match") if generate else Task(task, "score", _ids, _exact, "exact")
        )
        places = [(depth, index) for depth in depths for index in range(count)]
        uids = [f"{task}/{length}/{depth}/{index}" for depth, index in places]

        def build(number: int) -> Sample:
            depth, index = places[number]
            room = length - NEW_TOKENS if generate else length
            probe = make_probe(task, room, index, haystack, tokenizer, dataclasses.replace(config, depth=depth / 100))
            fields = {"prompt": probe.prompt, "prompt_ids": probe.prompt_ids, "continuation_ids": probe.answer_ids}
            notes = {"needle": probe.needle, "needle_start": probe.needle_start, "needle_end": probe.needle_end}
            axes = {"length": length, "depth": depth}
            return Sample(uids[number], fields, (probe.answer,), axes, NEW_TOKENS if generate else 0, notes)

        return Group(kind, uids, build, length)

    return [group(task, length) for length in lengths for task in tasks]


def _text(sample: Sample, _: Showing) -> Rendered:
    return Rendered((Message.of("user", sample.fields["prompt"]),), chat=False)


def _ids(sample: Sample, _: Showing) -> Tokens:
    return Tokens(sample.fields["prompt_ids"], sample.fields["continuation_ids"])


def _found(sample: Sample, _: Showing, reply: Reply) -> Verdict:
    return Verdict({"match": match_any(reply.text, sample.references)}, "ok" if cleaned(reply.text) else "empty")


def _exact(_: Sample, __: Showing, reply: Reply) -> Verdict:
    return Verdict({"exact": float(reply.numbers["exact"]), "log_prob": reply.numbers["log_prob"]})

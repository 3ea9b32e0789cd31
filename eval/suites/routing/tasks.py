"""Prompts for looking into the routers: probes, running text, and a user's own records."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from eval.harness.encoding import Encoder
from eval.samples import Message, Rendered, Reply, Sample, Segment, Showing, Tokens, Verdict
from eval.suites.haystack import Haystack
from eval.suites.probes import PROBE_TASKS, ProbeConfig, ProbeTask, make_probe
from eval.suites.records import read_records
from eval.tasks import Group, Task, loaded_group


def routing_groups(
    lengths: Sequence[int], count: int, haystacks: Mapping[str, Haystack], encoder: Encoder, *, seed: int
) -> list[Group]:
    """`count` prompts at each length of each kind of probe and of each kind of running text."""
    config = ProbeConfig(seed=seed, sink_tokens=0, local_tokens=0)

    def probe(kind: ProbeTask, length: int, index: int) -> Sequence[int]:
        return make_probe(kind, length, index, haystacks["prose"], encoder.tokenizer, config).prompt_ids

    def window(kind: str, length: int, index: int) -> Sequence[int]:
        return haystacks[kind].window(random.Random(f"{seed}/{kind}/{length}/{index}"), length)

    def group(kind: str, length: int, ids_of: Callable[[int], Sequence[int]]) -> Group:
        uids = [f"{kind}/{length}/{index}" for index in range(count)]

        def build(index: int) -> Sample:
            return Sample(uids[index], {"prompt_ids": ids_of(index)}, axes={"length": length})

        return Group(Task(kind, "route", _ids, _sparsity, "msr"), uids, build, length)

    groups = []
    for length in lengths:
        groups += [group(kind, length, partial(probe, kind, length)) for kind in PROBE_TASKS]
        groups += [group(kind, length, partial(window, kind, length)) for kind in haystacks]
    return groups


def record_groups(path: str | Path, count: int, *, tokens: int) -> list[Group]:
    """The first `count` records of each task of a file: one `{"context", "question", "metadata": {"task"}}` a line.

    Longer contexts lose their middle.

    Raises:
        DataError: a line that is no such record, by file and line.
    """
    by_task: dict[str, list[Sample]] = {}
    for number, record in enumerate(read_records(path)):
        metadata = record.fields.get("metadata")
        name = metadata.get("task") if isinstance(metadata, dict) else None
        if not isinstance(name, str) or not name:
            raise record.error("no task under metadata; want {'metadata': {'task': 'name'}}")
        fields = {"context": record.text("context"), "question": record.text("question", empty=True)}
        samples = by_task.setdefault(name, [])
        if len(samples) < count:
            samples.append(Sample(f"{name}/{number}", fields, axes={"length": tokens}))
    return [
        loaded_group(Task(name, "route", _text, _sparsity, "msr", policy="context"), samples, tokens=tokens)
        for name, samples in by_task.items()
    ]


def head_groups(
    tasks: Sequence[ProbeTask], lengths: Sequence[int], count: int, haystack: Haystack, encoder: Encoder, *, seed: int
) -> list[Group]:
    """`count` probes of each task at each length, to see which heads look at the needle."""
    config = ProbeConfig(seed=seed, sink_tokens=0, local_tokens=0)

    def group(task: ProbeTask, length: int) -> Group:
        uids = [f"{task}/{length}/{index}" for index in range(count)]

        def build(index: int) -> Sample:
            probe = make_probe(task, length, index, haystack, encoder.tokenizer, config)
            fields = {"prompt_ids": probe.prompt_ids, "continuation_ids": probe.answer_ids}
            fields["needle"] = (probe.needle_start, probe.needle_end)
            return Sample(uids[index], fields, (probe.answer,), {"length": length})

        return Group(Task(task, "attend", _ids, _attention, "attention"), uids, build, length)

    return [group(task, length) for length in lengths for task in tasks]


def _ids(sample: Sample, _: Showing) -> Tokens:
    return Tokens(sample.fields["prompt_ids"], sample.fields.get("continuation_ids", ()))


def _text(sample: Sample, _: Showing) -> Rendered:
    parts = (Segment(sample.fields["context"], cuttable=True), Segment(f"\n\n{sample.fields['question']}"))
    return Rendered((Message("user", parts),))


def _sparsity(_: Sample, __: Showing, reply: Reply) -> Verdict:
    return Verdict({"msr": reply.numbers["msr"]})


def _attention(_: Sample, __: Showing, reply: Reply) -> Verdict:
    return Verdict({"attention": max(max(heads) for heads in reply.details["needle_attention"])})

"""Prompts for looking into the routers: probes, running text, and a user's own records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.harness.encoding import Encoder
from eval.samples import Message, Rendered, Reply, Sample, Segment, Showing, Tokens, Verdict
from eval.suites.haystack import Haystack
from eval.suites.needles import probe_groups
from eval.suites.perplexity import window_groups
from eval.suites.probes import PROBE_TASKS, ProbeConfig, ProbeTask
from eval.suites.records import read_records
from eval.tasks import Group, Task, likelihood_tokens, loaded_group


def routing_groups(
    lengths: Sequence[int], count: int, haystacks: Mapping[str, Haystack], encoder: Encoder, *, seed: int
) -> list[Group]:
    """`count` prompts at each length of each kind of probe and of each kind of running text."""
    config = ProbeConfig(seed=seed, sink_tokens=0, local_tokens=0)
    groups = []
    for length in lengths:
        groups += probe_groups(_routed, PROBE_TASKS, [length], count, haystacks["prose"], encoder.tokenizer, config)
        groups += window_groups(_routed, [length], count, haystacks, seed=seed, prompt_tokens=lambda length: length)
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
    kinds: Sequence[ProbeTask], lengths: Sequence[int], count: int, haystack: Haystack, encoder: Encoder, *, seed: int
) -> list[Group]:
    """`count` probes of each kind at each length, to see which heads look at the needle."""
    config = ProbeConfig(seed=seed, sink_tokens=0, local_tokens=0)
    return probe_groups(_attended, kinds, lengths, count, haystack, encoder.tokenizer, config)


def _routed(name: str) -> Task:
    return Task(name, "route", _prompt_only, _sparsity, "msr")


def _attended(name: str) -> Task:
    return Task(name, "attend", likelihood_tokens, _attention, "attention")


def _prompt_only(sample: Sample, _: Showing) -> Tokens:
    return Tokens(sample.fields["prompt_ids"])


def _text(sample: Sample, _: Showing) -> Rendered:
    parts = (Segment(sample.fields["context"], cuttable=True), Segment(f"\n\n{sample.fields['question']}"))
    return Rendered((Message("user", parts),))


def _sparsity(_: Sample, __: Showing, reply: Reply) -> Verdict:
    return Verdict({"msr": reply.numbers["msr"]})


def _attention(_: Sample, __: Showing, reply: Reply) -> Verdict:
    return Verdict({"attention": max(max(heads) for heads in reply.details["needle_attention"])})

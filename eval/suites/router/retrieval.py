"""Retrieval accuracy: is the needle's answer, word for word, what greedy decoding would write after the prompt?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.samples import Sample
from eval.suites.haystack import Haystack
from eval.suites.probes import PROBE_TASKS, ProbeConfig, ProbeTask, make_probe
from eval.tasks import Group, likelihood_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def retrieval_groups(
    lengths: Sequence[int],
    count: int,
    haystack: Haystack,
    tokenizer: PreTrainedTokenizerBase,
    config: ProbeConfig,
) -> list[Group]:
    """`count` probes of every task at every length (tokens of prompt and answer)."""

    def group(task: ProbeTask, length: int) -> Group:
        def build(index: int) -> Sample:
            probe = make_probe(task, length, index, haystack, tokenizer, config)
            fields = {"prompt_ids": probe.prompt_ids, "continuation_ids": probe.answer_ids}
            return Sample(f"{task}/{length}/{index}", fields, (probe.answer,), {"length": length})

        uids = [f"{task}/{length}/{index}" for index in range(count)]
        return Group(likelihood_task(task, main_score="exact"), uids, build, length)

    return [group(task, length) for length in lengths for task in PROBE_TASKS]

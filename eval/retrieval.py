"""Retrieval accuracy: is the needle's answer, word for word, what greedy decoding would write after the prompt?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eval.haystack import Haystack
from eval.probes import PROBE_TASKS, ProbeConfig, ProbeTask, make_probe
from eval.runner import Group
from eval.scoring import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER_TOKENS = 16


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
            return Sample(f"{task}/{length}/{index}", probe.prompt_ids, probe.answer_ids)

        return Group(task, length, _ANSWER_TOKENS, count, build)

    return [group(task, length) for length in lengths for task in PROBE_TASKS]

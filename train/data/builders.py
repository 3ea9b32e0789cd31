"""Builds the five labelled tasks from a corpus: needles and questions, summaries, code, few-shot examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from elastic_jax.errors import DataError
from train.config import DataConfig
from train.data import needles, text_tasks
from train.data.corpus import Corpus
from train.data.foreign import Evidence
from train.data.records import CODE, ICL, MULTIHOP_QA, SINGLE_QA, SUMMARIZATION, TASKS, Record
from train.data.windows import Windows

OVERHEAD = 256
"""Tokens kept free in each sample for hidden facts, question, answer and chat markers."""


class Builder:
    """Draws records of any task; everything follows from the corpus, the tokenizer and the seed."""

    def __init__(self, corpus: Corpus, tokenizer: Any, data: DataConfig, *, seed: int = 0):
        """Samples have `data.min_tokens` to `data.max_tokens` tokens, about log-uniform between them;
        `data.evidence_share` of a task's records comes from the corpus' question files, where it has any for the task.

        Raises:
            DataError: bounds that leave no room, or a corpus without prose or code.
        """
        low, high = data.min_tokens, data.max_tokens
        if not OVERHEAD + 64 <= low <= high:
            raise DataError(f"min_tokens {low}, max_tokens {high}: want {OVERHEAD + 64} <= min <= max.")
        self.windows = Windows(tokenizer)
        self.prose = corpus.prose or tuple(text for text, _ in corpus.documented) or corpus.code
        self.corpus = Corpus(self.prose, corpus.code or corpus.prose, corpus.documented, corpus.evidence)
        if not self.prose:
            raise DataError("The corpus holds question files only. Add .txt or .py files to hide facts in.")
        self.bounds = np.log([low, high])
        self.evidence_share = data.evidence_share
        self.seed = seed
        self.stories = tuple(item for item in corpus.evidence if item.facts)
        self.evidence = {task: tuple(e for e in corpus.evidence if e.task == task) for task in range(len(TASKS))}

    def record(self, task: int, index: int) -> Record:
        """Record number `index` of a task."""
        rng = np.random.default_rng([self.seed, task, index])
        tokens = int(np.exp(rng.uniform(*self.bounds))) - OVERHEAD
        evidence = self.evidence[task]
        if evidence and rng.random() < self.evidence_share:
            found = self._from_evidence(evidence[rng.integers(len(evidence))], tokens, rng)
            if found is not None:
                return found
        if task == ICL:
            if self.stories and rng.random() < 0.5:
                return text_tasks.solved_stories(self.stories, tokens, self.windows, rng)
            return text_tasks.labelled_snippets(self.corpus, tokens, self.windows, rng)
        if task == SINGLE_QA:
            return needles.single_hop(self.prose, tokens, self.windows, rng)
        if task == MULTIHOP_QA:
            return needles.two_hops(self.prose, tokens, self.windows, rng)
        make = {SUMMARIZATION: text_tasks.summary, CODE: text_tasks.code}[task]
        return make(self.corpus, tokens, self.windows, rng)

    def _from_evidence(self, item: Evidence, tokens: int, rng: np.random.Generator) -> Record | None:
        """A question file's record cut to length; None if cutting would lose a supporting place."""
        answer = self.windows.head(item.answer, OVERHEAD // 2)
        if item.facts:
            filler = tokens - self.windows.count(" ".join(item.facts))
            if filler < tokens // 4:
                return None
            context = needles.scatter(self.windows.random(self.prose, filler, rng), item.facts, rng)
        elif item.task == MULTIHOP_QA:
            if self.windows.count(item.context) > tokens:
                return None
            context = item.context
        elif item.answer_start is not None:
            context = self.windows.around(item.context, item.answer_start, tokens, rng)
        elif item.task == CODE:
            context = item.context
            if self.windows.count(context) > tokens:
                return None
        else:
            context = self.windows.head(item.context, tokens)
        return Record(context, item.question, answer, item.task, is_prefix=False)


def build_records(builder: Builder, counts: Mapping[int, int]) -> list[Record]:
    """`counts[task]` records of every task, in task order.

    Raises:
        DataError: no record asked for.
    """
    records = [builder.record(task, index) for task, count in sorted(counts.items()) for index in range(count)]
    if not records:
        raise DataError("The data set is empty: every task count is 0. Ask for at least one record.")
    return records

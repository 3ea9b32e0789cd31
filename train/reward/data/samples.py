"""Records to tokenised samples: comparisons for preference losses, judgements for supervised ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from train.data.packing import Sample, make_sample
from train.data.records import errors_name
from train.loop.reporting import CountProgress
from train.reward.data.pairs import PairSample
from train.reward.data.records import JudgeRecord, PreferenceRecord, Tally
from train.reward.data.tokens import cut_context, encode

_MANY = 1000
"""Records from which on tokenising takes long enough for a progress bar."""

_NONE_FITS = "No record fits the row. Raise its lengths, or shorten the answers."
LONG_PROMPT = "the prompt is too long even without its context"


def pair_samples(
    records: Sequence[PreferenceRecord],
    tokenizer: Any,
    *,
    prompt_length: int,
    response_length: int,
    rejects: int | None = None,
) -> tuple[list[PairSample], Tally]:
    """Tokenised comparisons, in order, and what was left out or shortened.

    A longer prompt loses tokens from the middle of its context; an answer is never cut: a longer chosen one leaves the
    record out, a longer rejected one itself.

    Args:
        prompt_length, response_length: most tokens of a prompt and of one answer.
        rejects: rejected answers of a record that batches will hold; further ones are counted as left out.

    Raises:
        DataError: a template that does not fit (see `encode`), or no record left.
    """
    tally, samples = Tally(), []
    for index, record in _with_progress(records):
        where = record.where or f"record {index}"
        with errors_name(where):
            encoded = encode(tokenizer, record.prompt, (record.chosen, *record.rejected), record.context)
        if len(encoded.answer_ids[0]) > response_length:
            tally.skip(f"the chosen answer has more than {response_length} tokens", where)
            continue
        short = [place for place, ids in enumerate(encoded.answer_ids) if len(ids) <= response_length]
        for _ in range(len(encoded.answer_ids) - len(short)):
            tally.skip(f"a rejected answer has more than {response_length} tokens", where)
        if len(short) < 2:
            tally.skip("no rejected answer is short enough", where)
            continue
        prompt_ids = cut_context(encoded, prompt_length)
        if prompt_ids is None:
            tally.skip(LONG_PROMPT, where)
            continue
        _count_cut(tally, len(encoded.prompt_ids) - len(prompt_ids))
        for _ in range(0 if rejects is None else len(short) - 1 - rejects):
            tally.skip(f"more than {rejects} rejected answers", where)
        kinds = tuple(record.kinds[place - 1] for place in short[1:]) if record.kinds else ()
        answers = tuple(encoded.answer_ids[place] for place in short)
        samples.append(PairSample(prompt_ids, answers, record.margin or 0.0, kinds))
    return tally.finish(samples, _NONE_FITS)


def judge_samples(records: Sequence[JudgeRecord], tokenizer: Any, *, row_length: int) -> tuple[list[Sample], Tally]:
    """Tokenised judgements for `train.data.pipeline.make_pipeline`, in order, and what was left out or shortened.

    The loss is on the answer only. A prompt that leaves no room for its answer in a row loses tokens from the middle of
    its context; an answer is never cut.

    Raises:
        DataError: a template that does not fit (see `encode`), or no record left.
    """
    tally, samples = Tally(), []
    for index, record in _with_progress(records):
        where = record.where or f"record {index}"
        with errors_name(where):
            encoded = encode(tokenizer, record.prompt, (record.answer,), record.context)
        (answer_ids,) = encoded.answer_ids
        if len(answer_ids) >= row_length:
            tally.skip(f"the answer leaves no room for a prompt in {row_length} tokens", where)
            continue
        prompt_ids = cut_context(encoded, row_length - len(answer_ids))
        if prompt_ids is None:
            tally.skip(LONG_PROMPT, where)
            continue
        _count_cut(tally, len(encoded.prompt_ids) - len(prompt_ids))
        samples.append(make_sample(np.concatenate([prompt_ids, answer_ids]).astype(np.int32), len(prompt_ids)))
    return tally.finish(samples, _NONE_FITS)


def _with_progress[R](records: Sequence[R]) -> Iterator[tuple[int, R]]:
    """The records with their numbers, while a bar shows how many are done, where they are many."""
    if len(records) < _MANY:
        yield from enumerate(records)
        return
    with CountProgress("records tokenised", len(records)) as bar:
        for index, record in enumerate(records):
            yield index, record
            bar.update(index + 1)


def _count_cut(tally: Tally, tokens: int) -> None:
    if tokens:
        tally.cut += 1
        tally.cut_tokens += tokens

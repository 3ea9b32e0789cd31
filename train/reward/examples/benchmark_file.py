"""Generated preferences in the form of Long-RewardBench, so that `eval long-rewardbench` evaluates trained models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elastic_jax.errors import DataError
from elastic_jax.files import write_json_lines
from train.reward.data.records import PreferenceRecord
from train.reward.examples.generate import ranked_answers

TASK = "LongQA"
RANKING_SIZES = (2, 3, 4)
_BUCKETS = (4, 8, 16, 32, 64, 128)
_CHARACTERS_PER_TOKEN = 4


def write_long_rewardbench(
    folder: Path, pairs: Sequence[PreferenceRecord], ranked: Sequence[PreferenceRecord], seed: int
) -> Path:
    """Writes `LongQA.jsonl` into a folder for `eval long-rewardbench --data FOLDER`, and returns its path.

    Args:
        pairs: each gives a pair with its first rejected answer; the kind of its flaw is the subtype, so that the report
            has results by kind.
        ranked: each gives rankings of 2, 3 and 4 versions of its chosen answer, more and more of whose words are out of
            order.

    Raises:
        DataError: no record.
    """
    lines = [_pair(number, record) for number, record in enumerate(pairs)]
    for record in ranked:
        lines += [_ranking(len(lines) + place, record, size, seed) for place, size in enumerate(RANKING_SIZES)]
    if not lines:
        raise DataError("no record to write. Ask for at least one pair or ranking.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{TASK}.jsonl"
    write_json_lines(path, lines)
    return path


def _pair(number: int, record: PreferenceRecord) -> dict[str, Any]:
    kind = record.kinds[0] if record.kinds else "other"
    return _shared(number, record) | {
        "tasktype": "PairWise",
        "subtype": kind,
        "chosen": record.chosen,
        "rejected": record.rejected[0],
        "candidates": None,
        "candidates_score": None,
    }


def _ranking(number: int, record: PreferenceRecord, size: int, seed: int) -> dict[str, Any]:
    answers, scores = ranked_answers(record, size, seed)
    return _shared(number, record) | {
        "tasktype": "BestOfN",
        "subtype": str(size),
        "chosen": None,
        "rejected": None,
        "candidates": answers,
        "candidates_score": scores,
    }


def _shared(number: int, record: PreferenceRecord) -> dict[str, Any]:
    texts = [message.content for message in record.prompt]
    tokens, words = sum(map(len, texts)) // _CHARACTERS_PER_TOKEN, sum(len(text.split()) for text in texts)
    return {
        "id": number,
        "prompt_template": [message.to_json() for message in record.prompt],
        "question": texts[-1].rpartition("Question: ")[2],
        "source": "generated",
        "task": TASK,
        "subtask": "single-doc qa",
        "ctx_length_for_length": _bucket(tokens),
        "ctx_length_for_words": _bucket(words),
        "length": tokens,
        "words_count": words,
    }


def _bucket(count: int) -> str:
    return next((f"{size}k" for size in _BUCKETS if count <= 1024 * size), f"{_BUCKETS[-1]}k")

"""From short samples to a training file: one line for each sample, in order, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.errors import DataError
from elastic_jax.journal import LineFile
from train.data.windows import Windows
from train.reward.data.records import JudgeRecord, PreferenceRecord, Tally
from train.reward.synthesis.lengthen import lengthen, short_prompt
from train.reward.synthesis.settings import SynthesisSettings
from train.reward.synthesis.short_samples import JudgedSample
from train.reward.synthesis.voting import INVALID, parse_score, vote

UNSCORED = "the judgement does not end with a score"
TOO_LONG = "longer than the target without any filler"


def prompt_line(item: JudgedSample) -> tuple[dict[str, Any], None]:
    """The line that asks a strong judge about a sample, `id` and `prompt`; it is never left out."""
    return {"id": item.uid, "prompt": [message.to_json() for message in short_prompt(item.sample)]}, None


@dataclass(frozen=True)
class Lengthener:
    """Makes the training line of a sample; everything about it follows from its id and the seed.

    Raises:
        DataError: no text to cut filler from.
    """

    tokenizer: Any
    texts: tuple[str, ...]
    """Prose that filler is cut from."""
    settings: SynthesisSettings

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError("no prose to cut filler from. Give a folder with .txt files.")

    def line(self, item: JudgedSample) -> tuple[dict[str, Any] | None, str | None]:
        """A judge's record (one judgement) or a preference (several), with its provenance; or why there is none.

        Raises:
            DataError: a sample without a judgement, or votes of unknown models.
        """
        voted = None
        if item.judgements is not None:
            try:
                voted = vote(item.judgements, self.settings.voting)
            except DataError as error:
                raise DataError(f"{item.where}: {error}") from error
            objection = voted.objection(self.settings.voting)
            if objection is not None:
                return None, objection
        elif item.judgement is not None and parse_score(item.judgement) == INVALID:
            return None, UNSCORED
        elif item.judgement is None:
            raise DataError(
                f"{item.where}: no `judgement` and no `judgements`. Make prompts for them: --stage prompts."
            )
        digest = hashlib.sha256(f"{self.settings.seed}/{item.uid}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
        target = int(rng.choice(self.settings.target_tokens))
        windows = Windows(self.tokenizer)
        made = lengthen(
            item.sample,
            lambda tokens: windows.random(self.texts, min(tokens, self.settings.chunk_tokens), rng).strip(),
            target_tokens=target,
            reserve=self.settings.reserve,
            tokenizer=self.tokenizer,
            rng=rng,
        )
        if made is None:
            return None, TOO_LONG
        if voted is None:
            record: JudgeRecord | PreferenceRecord = JudgeRecord(made.prompt, str(item.judgement), made.context)
            votes: dict[str, Any] = {}
        else:
            texts: Mapping[str, str] = item.judgements or {}
            rejected = tuple(texts[name] for name in voted.rejected)
            record = PreferenceRecord(made.prompt, texts[voted.chosen], rejected, None, made.context)
            votes = {
                "chosen_model": voted.chosen,
                "reject_models": list(voted.rejected),
                "scores": dict(voted.scores),
                "conf": list(voted.sizes),
            }
        return record.to_json() | votes | {
            "id": item.uid,
            "perspective": item.sample.perspective,
            "target_tokens": target,
            "tokens": made.tokens,
            "insert_index": made.insert_index,
            "places": [list(place) for place in made.places],
        }, None


def write_lines_of(
    items: Sequence[JudgedSample],
    make: Callable[[JudgedSample], tuple[Mapping[str, Any] | None, str | None]],
    path: Path,
    settings: Mapping[str, Any],
    advance: Callable[[int], None],
) -> Tally:
    """Writes a line for each item that has one, and goes on where an earlier call with the same settings stopped.

    Args:
        advance: called after each item with the number of items done.

    Raises:
        DataError: see `LineFile`; or all items are left out.
    """
    tally = Tally()
    with LineFile(path, settings) as lines:
        for number, item in enumerate(items, start=1):
            if item.uid not in lines.done:
                lines.add(item.uid, *make(item))
            reason = lines.done[item.uid]
            if reason is None:
                tally.kept += 1
            else:
                tally.skip(reason, item.where)
            advance(number)
        lines.finish()
    return tally

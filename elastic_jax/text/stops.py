"""What ends an answer: tokens, and the stop strings that `generation_config.json` of a checkpoint names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def end_tokens(tokenizer: Any, of_model: Sequence[int]) -> list[int]:
    """Ids that end an answer: those of the model, and the end token of its tokenizer.

    They differ in fine-tuned checkpoints whose `config.json` is still that of the base model: only the tokenizer then
    knows the token that ends a turn.
    """
    end = getattr(tokenizer, "eos_token_id", None)
    return [*of_model] if end is None or end in of_model else [*of_model, end]


def answer_text(tokenizer: Any, ids: Sequence[int], more_stops: Sequence[str] = ()) -> tuple[str, bool]:
    """The text of generated tokens up to the first stop string, and whether there is one.

    `more_stops` count besides the stop strings of the model.

    Special tokens are left out of the text; one that is itself a stop string ends it all the same.
    """
    stops = (*stop_strings(tokenizer), *more_stops)
    ends = {tokenizer.convert_tokens_to_ids(stop) for stop in stops if stop in tokenizer.added_tokens_encoder}
    place = next((place for place, token in enumerate(ids) if token in ends), None)
    text = str(tokenizer.decode(list(ids[:place]), skip_special_tokens=True))
    first = min((at for at in map(text.find, stops) if at >= 0), default=None)
    return text[:first], place is not None or first is not None


def stop_strings(tokenizer: Any) -> tuple[str, ...]:
    """The stop strings that `load_tokenizer` found beside a tokenizer."""
    return getattr(tokenizer, "stop_strings", ())


def held_back(stops: Sequence[str], text: str) -> int:
    """How many characters at the end of a growing answer may be the beginning of a stop string."""
    sizes = (size for stop in stops for size in range(1, len(stop)) if text.endswith(stop[:size]))
    return max(sizes, default=0)

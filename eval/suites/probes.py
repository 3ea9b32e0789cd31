"""Retrieval probes: a needle hidden in real text, a question about it, and the answer that must come back."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from elastic_jax.config import RouterConfig
from elastic_jax.errors import ConfigError, DataError
from elastic_jax.text.split import Split, on_side
from elastic_jax.text.tokens import begin_ids, encode_text
from eval.suites import words
from eval.suites.haystack import Haystack, Piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ProbeTask = Literal["passkey", "kv", "fact"]
PROBE_TASKS: tuple[ProbeTask, ...] = get_args(ProbeTask)

_EXCERPTS = 50
"""How many excerpts are tried until one has a place for every needle."""


@dataclass(frozen=True)
class ProbeConfig:
    """How probes are made; the defaults fit one sink block and two local blocks of 128 tokens."""

    sink_tokens: int = 128
    """No needle starts before this token: sparse heads always see the first ones."""
    local_tokens: int = 256
    """Every needle ends at least this many tokens before the question: sparse heads see those."""
    distractors: int = 1
    """Other needles of the same kind, about other doors or people."""
    split: Split = "evaluation"
    """The side of `split_of` from which subjects and answers are drawn."""
    seed: int = 0
    depth: float | None = None
    """Depth of the needle, 0 to 1, between the barred start and end of the text; None draws one."""


def unseen_by_sparse_heads(router: RouterConfig, *, seed: int, distractors: int = 1) -> ProbeConfig:
    """Probes whose needles no sparse head of this router sees when the question is read."""
    return ProbeConfig(
        sink_tokens=router.sink_blocks * router.block_size,
        local_tokens=router.local_blocks * router.block_size,
        distractors=distractors,
        seed=seed,
    )


@dataclass(frozen=True)
class Probe:
    """One prompt with its expected continuation; token positions count from the start of the prompt."""

    prompt: str
    prompt_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    needle: str
    needle_start: int
    needle_end: int
    question_start: int


@dataclass(frozen=True)
class _Needle:
    statement: str
    question: str
    lead: str
    answer: str


def make_probe(
    task: ProbeTask,
    length: int,
    index: int,
    haystack: Haystack,
    tokenizer: PreTrainedTokenizerBase,
    config: ProbeConfig,
) -> Probe:
    """Builds probe number `index` of a task: the same arguments give the same probe, on every machine.

    Args:
        length: token budget of prompt and answer; missed by less than one word of the haystack.

    Raises:
        ConfigError: the budget leaves no place outside the sink and the local window.
        DataError: the haystack is shorter than the budget or has no running prose, or the tokenizer merges question
            and answer.
    """
    rng = random.Random(f"{config.seed}/{config.split}/{task}/{length}/{index}")
    needles = _draw_needles(rng, task, 1 + config.distractors, config.split)
    target = needles[0]
    tail = f"\n\nQuestion: {target.question}\nAnswer: {target.lead}"
    tail_ids, answer_ids = _split_tail(tokenizer, tail, f" {target.answer}")
    begin = tuple(begin_ids(tokenizer))
    planted = [_piece(tokenizer, f" {needle.statement}") for needle in needles]

    room = length - len(begin) - len(tail_ids) - len(answer_ids) - sum(len(piece.ids) for piece in planted)
    if room <= config.sink_tokens + config.local_tokens:
        raise ConfigError(
            f"A {task} probe of {length} tokens has no place for its needle: the first {config.sink_tokens} and the "
            f"last {config.local_tokens} tokens of the text are barred. Ask for a longer prompt."
        )
    for _ in range(_EXCERPTS):
        pieces = _plant(rng, haystack.excerpt(rng, room), planted, config)
        if pieces is not None:
            break
    else:
        raise DataError(
            f"None of {_EXCERPTS} excerpts of {room} tokens has {len(planted)} sentence starts, one for each needle, "
            "that sparse heads cannot see. Use running prose as haystack, longer prompts, or fewer distractors."
        )
    needle_start = len(begin) + sum(len(piece.ids) for piece in pieces[: pieces.index(planted[0])])
    body_ids = sum((piece.ids for piece in pieces), begin)
    return Probe(
        prompt="".join(piece.text for piece in pieces) + tail,
        prompt_ids=body_ids + tail_ids,
        answer=target.answer,
        answer_ids=answer_ids,
        needle=target.statement,
        needle_start=needle_start,
        needle_end=needle_start + len(planted[0].ids),
        question_start=len(body_ids),
    )


def _draw_needles(rng: random.Random, task: ProbeTask, count: int, split: Split) -> list[_Needle]:
    if task == "passkey":
        doors = [f"{colour} {thing}" for colour in words.COLOURS for thing in words.THINGS]
        subjects, answers = on_side(doors, split), on_side([str(n) for n in range(10_000, 100_000)], split)
        forms = ("The pass key of the {} is {}.", "What is the pass key of the {}?", "The pass key of the {} is")
    elif task == "kv":
        subjects, answers = on_side(words.FIRST_NAMES, split), on_side(words.SECRET_WORDS, split)
        forms = ("The secret word of {} is {}.", "What is the secret word of {}?", "The secret word of {} is")
    else:
        people = [f"{first} {family}" for first in words.FIRST_NAMES for family in words.FAMILY_NAMES]
        subjects, answers = on_side(people, split), on_side(words.CITIES, split)
        forms = ("{} was born in {}.", "In which city was {} born?", "{} was born in")
    statement, question, lead = forms
    drawn = zip(rng.sample(subjects, count), rng.sample(answers, count), strict=True)
    return [_Needle(statement.format(s, a), question.format(s), lead.format(s), a) for s, a in drawn]


def _piece(tokenizer: PreTrainedTokenizerBase, text: str) -> Piece:
    return Piece(text, tuple(encode_text(tokenizer, text, begin=False)))


def _split_tail(tokenizer: PreTrainedTokenizerBase, tail: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tail_ids = _piece(tokenizer, tail).ids
    whole = _piece(tokenizer, tail + answer).ids
    if whole[: len(tail_ids)] != tail_ids:
        raise DataError(
            f"This tokenizer joins the end of {tail!r} with {answer!r}; the answer has no tokens of its own."
        )
    return tail_ids, whole[len(tail_ids) :]


def _plant(rng: random.Random, body: list[Piece], planted: list[Piece], config: ProbeConfig) -> list[Piece] | None:
    """Puts every needle at its own sentence start, at a depth uniform over the places that sparse heads cannot see.

    None if there are fewer such places than needles, as in a passage of tables.
    """
    starts, position = [], 0
    for piece in body:
        starts.append(position)
        position += len(piece.ids)
    low, high = config.sink_tokens, position - config.local_tokens
    free = {index for index, start in enumerate(starts) if low <= start <= high and body[index].text[0].isspace()}
    if len(free) < len(planted):
        return None
    places: dict[int, Piece] = {}
    for number, needle in enumerate(planted):
        chosen = config.depth if number == 0 and config.depth is not None else rng.random()
        wanted = low + chosen * (high - low)
        place = min(sorted(free), key=lambda index: abs(starts[index] - wanted))
        free.remove(place)
        places[place] = needle
    pieces = []
    for index, piece in enumerate(body):
        if index in places:
            pieces.append(places[index])
        pieces.append(piece)
    return pieces

"""Made-up preferences with known labels: short texts about buildings, questions, right answers and flawed ones.

Everything follows from the seed. Each rejected answer has one known flaw, so that results can be reported by kind.
Chosen and rejected answers are about equally long: a judge that prefers the longer one is right about half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elastic_jax.errors import ConfigError
from elastic_jax.text.judge_prompts import LETTERS, answers_prompt
from elastic_jax.text.split import Split
from train.reward.data.records import JudgeRecord, PreferenceRecord, conversation
from train.reward.examples.vocabulary import Vocabulary, vocabulary

KINDS = ("wrong", "beside", "off-topic", "shuffled", "refusal", "truncated", "repetitive", "rude")
"""Flaws of rejected answers: a value of another building; true but not what was asked; about something else; the words
out of order; a refusal; ends before it says the value; repeats the question only; an insult instead of an answer."""

_SHARES = np.array([1, 2, 3, 3, 3, 3, 3, 3], np.float64)
"""How often each flaw is drawn. The first two take reading the text, the others show in the answer: few of the first
two keep the set learnable for a model of 135M parameters within a hundred steps."""

_SIDE = {"train": 0, "evaluation": 1}
_LEADS = ("", "According to the text, ", "The text says that ", "As the text states, ")
_STATED = 4
"""Properties that a text states of each building."""
_LENGTH = 1.15
"""Characters of stock sentences for each of a right answer, whose digits are tokens of their own."""
_MOST_FURTHER = 2
"""Further true sentences that an answer may have."""

_REMARKS = {
    "right": "answers the question with what the text says",
    "wrong": "gives a value that the text does not state for it",
    "beside": "says something true that was not asked for",
    "off-topic": "talks about something else",
    "shuffled": "puts the words in a wrong order",
    "refusal": "refuses to answer",
    "truncated": "breaks off before the answer",
    "repetitive": "only repeats the question",
    "rude": "insults the user instead of answering",
}
"""What a judge says of an answer, by its flaw."""

_STATEMENTS = {
    "keeper": ("{b} is looked after by {v}", "Who looks after {b}?"),
    "founder": ("{b} was founded by {v}", "Who founded {b}?"),
    "town": ("{b} stands in {v}", "In which town does {b} stand?"),
    "year": ("{b} was built in {v}", "When was {b} built?"),
    "price": ("a ticket for {b} costs {v} euros", "How much is a ticket for {b}?"),
    "steps": ("{b} has {v} steps", "How many steps does {b} have?"),
    "hours": ("{b} opens at {v}", "At what time does {b} open?"),
}
"""By property: how a text states it and how it is asked for; `{b}` is the building, `{v}` the value."""


@dataclass(frozen=True)
class _Building:
    name: str
    values: dict[str, str]
    """By property, those only that the text states."""

    def statement(self, name: str, value: str | None = None) -> str:
        return _STATEMENTS[name][0].format(b=self.name, v=value or self.values[name])


@dataclass(frozen=True)
class _Scene:
    """What a text is about, and what is asked of it."""

    buildings: tuple[_Building, ...]
    asked: _Building
    name: str
    """The property that is asked for."""

    @property
    def question(self) -> str:
        return _STATEMENTS[self.name][1].format(b=self.asked.name)

    @property
    def text(self) -> str:
        """A paragraph for each building."""
        return "\n".join(" ".join(_sentence(b.statement(name)) for name in b.values) for b in self.buildings)


def records(
    count: int, seed: int, split: Split = "train", *, rejects: int = 1, buildings: int = 4
) -> list[PreferenceRecord]:
    """`count` preference records; record i is the same whatever `count` is.

    Args:
        split: the two sides share no person, town, year or stock sentence.
        rejects: rejected answers of each record, each with a flaw of its own kind.
        buildings: what the text is about; 4 make about 180 tokens (SmolLM2), each further one adds about 42.

    Raises:
        ConfigError: more rejected answers than kinds of flaws, or a number of buildings outside 2 to 300.
    """
    if not 1 <= rejects <= len(KINDS):
        raise ConfigError(f"rejects is {rejects}; want 1 to {len(KINDS)}, as many as there are kinds of flaws.")
    if not 2 <= buildings <= 300:
        raise ConfigError(f"buildings is {buildings}; want 2 to 300.")
    words = vocabulary(split)
    return [
        _record(np.random.default_rng([seed, _SIDE[split], index]), words, rejects, buildings) for index in range(count)
    ]


def ranked_answers(record: PreferenceRecord, size: int, seed: int) -> tuple[list[str], list[float]]:
    """`size` versions of the chosen answer, best first, and the share of words that each leaves at their places.

    The first is whole; each next one has more of its words shuffled, the last all of them.
    """
    rng = np.random.default_rng([seed, size])
    shares = np.linspace(0.0, 1.0, size)
    return [_shuffled(record.chosen, share, rng) for share in shares], [
        round(1.0 - float(share), 3) for share in shares
    ]


def judge_records(count: int, seed: int, split: Split = "train", *, buildings: int = 4) -> list[JudgeRecord]:
    """`count` judgements of pairs, with the prompt of `eval long-rewardbench`: a remark on each answer, then a verdict.

    Arguments as for `records`.
    """
    return [
        JudgeRecord(record.prompt, record.chosen, record.context)
        for record in judge_preferences(count, seed, split, buildings=buildings)
    ]


def judge_preferences(
    count: int, seed: int, split: Split = "train", *, rejects: int = 1, buildings: int = 4
) -> list[PreferenceRecord]:
    """`count` preferences between judgements of pairs: the right one, then one whose remarks and verdict are exchanged,
    then a right one that forgets the verdict.

    Arguments as for `records`, with one or two rejected judgements.

    Raises:
        ConfigError: more than two rejected judgements.
    """
    if rejects > 2:
        raise ConfigError(f"rejects is {rejects}; judgements are generated with 1 or 2.")
    pairs = records(count, seed, split, buildings=buildings)
    return [_judgements(pair, [seed, _SIDE[split], index, 1], rejects) for index, pair in enumerate(pairs)]


def _judgements(pair: PreferenceRecord, seed: list[int], rejects: int) -> PreferenceRecord:
    (message,), (rejected,), (kind,) = pair.prompt, pair.rejected, pair.kinds
    right = int(np.random.default_rng(seed).integers(2))
    answers, remarks = [rejected, rejected], [_REMARKS[kind]] * 2
    answers[right], remarks[right] = pair.chosen, _REMARKS["right"]
    right_remarks = [f"Assistant {letter} {remark}." for letter, remark in zip(LETTERS, remarks, strict=False)]
    wrong_remarks = [f"Assistant {letter} {remark}." for letter, remark in zip(LETTERS, remarks[::-1], strict=False)]
    asked = answers_prompt(message.content, answers, ranking=False)
    return PreferenceRecord(
        prompt=conversation(("system", asked.system), ("user", asked.before + asked.context + asked.after)),
        chosen=" ".join([*right_remarks, f"[[{LETTERS[right]}]]"]),
        rejected=(" ".join([*wrong_remarks, f"[[{LETTERS[1 - right]}]]"]), " ".join(right_remarks))[:rejects],
        context=pair.context,
        kinds=("wrong verdict", "no verdict")[:rejects],
    )


def _record(rng: np.random.Generator, words: Vocabulary, rejects: int, buildings: int) -> PreferenceRecord:
    scene = _scene(rng, words, buildings)
    kinds = [KINDS[k] for k in rng.choice(len(KINDS), rejects, replace=False, p=_SHARES / _SHARES.sum())]
    return PreferenceRecord(
        prompt=conversation(("user", f"{scene.text}\n\nQuestion: {scene.question}")),
        chosen=_answer(scene, scene.name, rng),
        rejected=tuple(_flawed(kind, scene, words, rng) for kind in kinds),
        context=scene.text,
        kinds=tuple(kinds),
    )


def _scene(rng: np.random.Generator, words: Vocabulary, count: int) -> _Scene:
    asked_for = _one(tuple(_STATEMENTS), rng)
    others = [name for name in _STATEMENTS if name != asked_for]
    picks = rng.choice(len(words.looks) * len(words.buildings), count, replace=False)
    made: list[_Building] = []
    for pick in picks:
        name = f"the {words.looks[pick % len(words.looks)]} {words.buildings[pick // len(words.looks)]}"
        stated = [asked_for, *map(str, rng.choice(others, _STATED - 1, replace=False))]
        made.append(_Building(name, {stated[i]: _value(stated[i], words, rng) for i in rng.permutation(_STATED)}))
    asked = made[rng.integers(count)]
    if all(other.values[asked_for] == asked.values[asked_for] for other in made):
        return _scene(rng, words, count)
    return _Scene(tuple(made), asked, asked_for)


def _value(name: str, words: Vocabulary, rng: np.random.Generator) -> str:
    pools = {"keeper": words.names, "founder": words.names, "town": words.towns, "year": words.years}
    if name in pools:
        return _one(pools[name], rng)
    if name == "hours":
        return f"{rng.integers(7, 12)} in the morning"
    return str(rng.integers(2, 30) if name == "price" else rng.integers(40, 400))


def _answer(scene: _Scene, name: str, rng: np.random.Generator, value: str | None = None) -> str:
    """A sentence that states a property of the asked building, and up to two about its others, true ones."""
    further = _further(scene, rng, without=name)
    return " ".join([_sentence(_one(_LEADS, rng) + scene.asked.statement(name, value)), *further])


def _further(scene: _Scene, rng: np.random.Generator, *, without: str) -> list[str]:
    names = [name for name in scene.asked.values if name not in (without, scene.name)]
    picked = rng.choice(names, rng.integers(min(_MOST_FURTHER, len(names)) + 1), replace=False)
    return [_sentence(scene.asked.statement(str(name))) for name in picked]


def _flawed(kind: str, scene: _Scene, words: Vocabulary, rng: np.random.Generator) -> str:
    whole = _answer(scene, scene.name, rng)
    characters = round(_LENGTH * len(whole))
    right = scene.asked.values[scene.name]
    if kind == "wrong":
        values = [b.values[scene.name] for b in scene.buildings if b.values[scene.name] != right]
        return _answer(scene, scene.name, rng, _one(values, rng))
    if kind == "beside":
        return _answer(scene, _one([name for name in scene.asked.values if name != scene.name], rng), rng)
    if kind == "shuffled":
        return _shuffled(whole, rng.uniform(0.5, 1.0), rng)
    if kind == "truncated":
        core = _one(_LEADS[1:], rng) + scene.asked.statement(scene.name).partition(right)[0].rstrip()
        return " ".join([*_further(scene, rng, without=scene.name), core[0].upper() + core[1:]])
    if kind == "repetitive":
        return _of_length([scene.question], characters, rng)
    pools = {"off-topic": words.off_topic, "refusal": words.refusal, "rude": words.rude}
    return _of_length(pools[kind], characters, rng)


def _of_length(sentences: Sequence[str], characters: int, rng: np.random.Generator) -> str:
    """Sentences in random order, again and again where they run out, until the nearest to the wanted length."""
    text = ""
    while True:
        for index in rng.permutation(len(sentences)):
            longer = f"{text} {sentences[index]}".strip()
            if text and len(longer) - characters > characters - len(text):
                return text
            text = longer


def _shuffled(text: str, share: float, rng: np.random.Generator) -> str:
    """The words of a text, where a share of them, two at least unless it is 0, have changed places."""
    words = text.split()
    if not share:
        return text
    while True:
        places = rng.choice(len(words), min(max(2, round(share * len(words))), len(words)), replace=False)
        moved = dict(zip(places.tolist(), np.roll(places, 1).tolist(), strict=True))
        made = " ".join(words[moved.get(place, place)] for place in range(len(words)))
        if made != text:
            return made


def _sentence(statement: str) -> str:
    return f"{statement[0].upper()}{statement[1:]}."


def _one(entries: Sequence[str], rng: np.random.Generator) -> str:
    return entries[int(rng.integers(len(entries)))]

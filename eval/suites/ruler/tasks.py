"""The 13 tasks of RULER (arXiv 2404.06654) at any length, with any tokenizer, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

from elastic_jax.errors import ConfigError, DataError
from eval.harness.encoding import Encoder
from eval.samples import Rendered, Reply, Sample, Showing, Verdict
from eval.suites.metrics import cleaned, match_all, match_any
from eval.suites.ruler.draft import Draft, fit
from eval.suites.ruler.niah import FORMS, Essay, make_niah, smallest_size
from eval.suites.ruler.questions import QuestionFile, make_question
from eval.suites.ruler.words import (
    COMMON,
    SMALLEST,
    coded_vocabulary,
    make_coded_words,
    make_common_words,
    make_tracking,
)
from eval.tasks import Group, Task

NEW_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
"""Room for the answer, by family of tasks."""
TASKS = (*FORMS, "vt", "cwe", "fwe", "qa_1", "qa_2")
_SHORT = 4096  # below it `cwe` has RULER's short form


@dataclass(frozen=True)
class RulerSources:
    """Everything that prompts are made of besides random numbers."""

    encoder: Encoder
    essay: Callable[[], Essay]
    """Asked for once, by the first task that needs it."""
    questions: Mapping[str, QuestionFile] = field(default_factory=dict)
    """`qa_1` and `qa_2`; a task whose file is missing cannot run."""
    seed: int = 0


def family(task: str) -> str:
    return task.partition("_")[0]


def ruler_groups(tasks: Sequence[str], lengths: Sequence[int], count: int, sources: RulerSources) -> list[Group]:
    """`count` samples of every task at every length (tokens of prompt and answer), shortest first.

    Raises:
        ConfigError: a task that RULER does not have, or a question task without its file.
        DataError: more questions asked for than the file holds.
    """
    for name in tasks:
        if name not in TASKS:
            raise ConfigError(f"RULER has no task {name!r}; it has {', '.join(TASKS)}.")
        if family(name) == "qa":
            if name not in sources.questions:
                raise ConfigError(f"task {name} wants a file of questions: give it with --{name.replace('_', '-')}.")
            have = len(sources.questions[name].questions)
            if have < count:
                raise DataError(f"task {name} wants {count} questions, its file has {have}; ask for fewer samples.")
    return [_group(name, length, count, sources) for length in lengths for name in tasks]


def _group(name: str, length: int, count: int, sources: RulerSources) -> Group:
    task = Task(name, "generate", _template, partial(_judge, match_any if family(name) == "qa" else match_all), "match")
    uids = [f"{name}/{length}/{index}" for index in range(count)]

    @cache
    def first_size() -> int:
        return _fitted(name, length, 0, sources, None)[1]

    def build(index: int) -> Sample:
        return make_sample(name, length, index, sources, guess=first_size())

    return Group(task, uids, build, length)


def make_sample(name: str, length: int, index: int, sources: RulerSources, *, guess: int | None = None) -> Sample:
    """Sample number `index` of a task: its prompt in the encoder's chat template and its answer have `length` tokens
    or up to about 1 % less. `guess` is the size of another sample of the group, to search from.

    Raises:
        ConfigError: the task cannot be so short.
    """
    draft, _ = _fitted(name, length, index, sources, guess)
    notes = {"needles": [[needle.start, needle.text] for needle in draft.needles], "context": len(draft.context)}
    axes: dict[str, str | int] = {"length": length}
    return Sample(f"{name}/{length}/{index}", {"draft": draft}, draft.references, axes, NEW_TOKENS[family(name)], notes)


def _fitted(name: str, length: int, index: int, sources: RulerSources, guess: int | None) -> tuple[Draft, int]:
    make, smallest = _maker(name, length, index, sources)
    budget, what = length - NEW_TOKENS[family(name)], f"{name} of {length} tokens"
    return fit(make, sources.encoder, budget, smallest=smallest, what=what, guess=guess)


def _maker(name: str, length: int, index: int, sources: RulerSources) -> tuple[Callable[[int], Draft], int]:
    """A function that makes the draft of a size, of the same random numbers for every size; and the smallest size."""

    def fresh() -> random.Random:
        return random.Random(f"{sources.seed}/{name}/{length}/{index}")

    if name in FORMS:
        form = FORMS[name]
        essay = sources.essay() if form.haystack == "essay" else None
        return lambda size: make_niah(form, size, fresh(), essay), smallest_size(form)
    if name == "vt":
        return lambda size: make_tracking(size, fresh()), SMALLEST
    if name == "cwe":
        return lambda size: make_common_words(size, fresh(), short=length < _SHORT), COMMON + 1
    if name == "fwe":
        return lambda size: make_coded_words(size, fresh(), vocabulary=coded_vocabulary(length)), 100
    file = sources.questions[name]
    return lambda size: make_question(size, fresh(), file.questions[index], file.documents), 0


def _template(sample: Sample, _: Showing) -> Rendered:
    return sample.fields["draft"].rendered()


def _judge(metric: Callable[[str, Sequence[str]], float], sample: Sample, _: Showing, reply: Reply) -> Verdict:
    return Verdict({"match": metric(reply.text, sample.references)}, "ok" if cleaned(reply.text) else "empty")

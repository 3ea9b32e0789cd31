"""A task: how its samples are put into words and judged; and groups of samples that are made when needed.

Tasks on token ids: is a given continuation what the model would write, and how likely is it?
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from elastic_jax.errors import DataError
from eval.samples import Kind, Rendered, Reply, Sample, Showing, Tokens, Verdict

LengthPolicy = Literal["skip", "middle", "context"]
"""For prompts longer than the limit: `skip` counts them as too_long; `middle` takes tokens out of the middle of the
last user message; `context` takes them out of the middle of its longest cuttable part only."""

Template = Callable[[Sample, Showing], Rendered | Tokens]
Metric = Callable[[Sample, Showing, Reply], Verdict]
ViewPlan = Callable[[Sample], Sequence[Showing]]
"""The ways in which a sample is shown: once, in both orders, several times, ..."""

ONCE = (Showing(),)


@dataclass(frozen=True)
class Task:
    """One task of a benchmark. Everything about it that is not data."""

    name: str
    kind: Kind
    template: Template
    metric: Metric
    main_score: str
    """The score of the metric that reports show."""
    policy: LengthPolicy = "skip"


@dataclass(frozen=True)
class Group:
    """Samples of one task that are alike in length; each is built only when it has to be shown."""

    task: Task
    uids: Sequence[str]
    build: Callable[[int], Sample]
    """Makes sample number 0 ... len(uids) - 1, whose uid is that of `uids`."""
    tokens: int
    """About how long the prompts are: orders the work and feeds the progress bar."""
    showings: Callable[[int], Sequence[Showing]] = lambda index: ONCE
    """The view plan, asked before a sample is built."""
    contents: Sequence[str] | None = None
    """Digests of what the task's template shows of each sample, where samples are records of a file: a journal's result
    of another content is made anew. None where the settings of the journal say all that samples depend on."""

    @property
    def count(self) -> int:
        return len(self.uids)


def loaded_group(task: Task, samples: Sequence[Sample], *, tokens: int, views: ViewPlan | None = None) -> Group:
    """A group of samples that can be had at any time, such as the records of a file.

    Samples that share a uid get uids of their own: `name`, `name#2`, ...

    Args:
        samples: goes through once at first, then asked for one by one.
        views: the ways in which a sample is shown; once by default.

    Raises:
        DataError: (when built) a sample that is another one than at first.
    """
    taken: set[str] = set()
    shared: Counter[str] = Counter()
    uids, contents = [], []
    for sample in samples:
        uid = sample.uid
        while uid in taken:
            shared[sample.uid] += 1
            uid = f"{sample.uid}#{shared[sample.uid] + 1}"
        taken.add(uid)
        uids.append(uid)
        contents.append(_content(sample))

    def build(index: int) -> Sample:
        sample = samples[index]
        if _content(sample) != contents[index]:
            raise DataError(f"sample {uids[index]} changed in its file during the run. Give the command again.")
        return dataclasses.replace(sample, uid=uids[index], content=contents[index])

    def showings(index: int) -> Sequence[Showing]:
        return ONCE if views is None else views(samples[index])

    return Group(task, uids, build, tokens, showings, contents)


def _content(sample: Sample) -> str:
    """Sixteen hex digits that stand for the fields and the room for the answer; references are in the records."""
    text = json.dumps([dict(sample.fields), sample.max_new_tokens], sort_keys=True, default=dataclasses.asdict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def likelihood_task(name: str, *, main_score: Literal["exact", "log_prob"]) -> Task:
    """Samples whose fields are `prompt_ids` and `continuation_ids`; scores `exact` (0 or 1) and `log_prob` (nats)."""
    return Task(name, "score", likelihood_tokens, _judge, main_score)


def perplexity_task(name: str) -> Task:
    """Samples that also have `parts`; scores `hits` (share of tokens that were the likeliest) and log-probabilities."""
    return Task(name, "score", likelihood_tokens, _judge_tokens, "hits")


def likelihood_tokens(sample: Sample, _: Showing) -> Tokens:
    """The template of samples whose fields are token ids."""
    return Tokens(sample.fields["prompt_ids"], sample.fields["continuation_ids"], sample.fields.get("parts", 1))


def _judge(_: Sample, __: Showing, reply: Reply) -> Verdict:
    return Verdict({"exact": float(reply.numbers["exact"]), "log_prob": reply.numbers["log_prob"]})


def _judge_tokens(sample: Sample, _: Showing, reply: Reply) -> Verdict:
    names = ["hits", "log_prob", *(f"log_prob_{part}" for part in range(sample.fields["parts"]))]
    return Verdict({name: reply.numbers[name] for name in names})

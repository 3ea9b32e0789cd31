"""What passes through an evaluation: samples, ways of showing them, prompts, replies and verdicts.

The arms of a comparison: ways of running the same weights on the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

Kind = Literal["generate", "score", "choose", "reward", "route", "attend"]
"""What is asked of a model: text after the prompt; the log-probability of a given continuation; the likelier one of
some options; the scalar reward of a conversation; what the routers make of the prompt; how much each head looks at
`Sample.fields["needle"]` (first and last + 1 token of the prompt) while it answers."""

Status = Literal["ok", "empty", "unparsed", "unfinished", "too_long"]
"""How a sample ended. `unfinished` replies end inside their thinking; `too_long` was never shown to the model. All but
`ok` count as the metric says, usually wrong."""


@dataclass(frozen=True)
class Segment:
    """A part of a message; the length policy `context` cuts only inside parts that are `cuttable`."""

    text: str
    cuttable: bool = False


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, in parts that are shown without anything between them."""

    role: Literal["system", "user", "assistant"]
    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, role: Literal["system", "user", "assistant"], text: str) -> Message:
        return cls(role, (Segment(text),))

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class Sample:
    """One item of a benchmark, before it is put into words."""

    uid: str
    """Names the sample in the journal and pairs it between runs: stable over orders, limits and shards."""
    fields: Mapping[str, Any]
    """What the task's template and metric need."""
    references: tuple[str, ...] = ()
    """Right answers, or the gold label."""
    axes: Mapping[str, str | int] = field(default_factory=dict)
    """What results are grouped by besides the task: length, depth, setting, ..."""
    max_new_tokens: int = 0
    """Room for the answer of a generating task."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that go into the journal with the result, such as where a needle lies."""
    content: str | None = None
    """Digest of what the template shows, for a record of a file: see `Group.contents`."""


@dataclass(frozen=True)
class Showing:
    """One way of showing a sample: the order of its candidates, and which repeat this is."""

    label: str = ""
    """Distinguishes the showings of one sample in the journal."""
    order: tuple[int, ...] = ()
    """Candidate shown at each place."""
    repeat: int = 0


@dataclass(frozen=True)
class Rendered:
    """A sample in words."""

    messages: tuple[Message, ...]
    answer_prefix: str = ""
    """Beginning of the reply that the model has to go on with."""
    options: tuple[str, ...] = ()
    """Continuations to choose from (`choose`), or the one to score (`score`)."""
    chat: bool = True
    """False for text to be continued as it is, whatever the model's chat template."""


@dataclass(frozen=True)
class Tokens:
    """A sample as token ids, for tasks that place tokens exactly; endpoints cannot take these."""

    prompt_ids: Sequence[int]
    continuation_ids: Sequence[int] = ()
    parts: int = 1
    """Equal parts of the continuation, each of which gets a score of its own."""
    option_ids: tuple[tuple[int, ...], ...] = ()
    """Continuations to choose from."""
    chat: bool = False
    """Whether these are the tokens of a prompt in the chat template."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a backend is given; ids are those of its tokenizer."""

    sample: Sample
    prompt_ids: Sequence[int] | np.ndarray
    continuation_ids: Sequence[int] = ()
    """Continuation to score."""
    parts: int = 1
    """Equal parts of the continuation, each of which gets a score of its own."""
    option_ids: tuple[tuple[int, ...], ...] = ()
    """Continuations to choose from."""
    max_new_tokens: int = 0
    messages: tuple[Message, ...] = ()
    """The same prompt as text, cut like the ids; empty for samples that come as token ids."""
    answer_prefix: str = ""
    cut_tokens: int = 0
    """Tokens that the length policy took out."""
    thinking_tag: str = ""
    """The tag with which the prompt has the model begin to think, as some chat templates do."""
    showing: Showing = Showing()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.continuation_ids)


@dataclass(frozen=True)
class Reply:
    """What a backend returns for one prompt. A reply with an `error` is not journalled: a restart asks again."""

    text: str = ""
    """With the tags of its thinking, the one that the prompt ends with included."""
    new_tokens: int = 0
    finish: Literal["stop", "length"] = "stop"
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Measurements by name: msr, esr, esr_last_layer, cache_bytes, prefill_s, decode_s; log_prob, exact, hits and, for
    several parts, log_prob_0, log_prob_1, ... (score); option_0, option_1, ... log-probabilities (choose); reward."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values that go into the journal as they are (route, attend)."""
    error: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a task's metric says about a reply: scores by metric name, the task's main one among them."""

    scores: Mapping[str, float]
    status: Status = "ok"
    parsed: Any = None
    """What the parser found, as plain JSON values."""


View = Literal["full", "sparse", "elastic"]
VIEWS: tuple[View, ...] = get_args(View)


@dataclass(frozen=True)
class Arm:
    """How attention and cache run. An endpoint has one arm, whose settings but the name mean nothing."""

    name: str
    """Shown in reports and part of every journal key."""
    view: View = "full"
    """Every head full, every head sparse, or each as its router decides."""
    router_bias: float = 0.0
    """Added to logit_full - logit_sparse of an elastic arm."""
    cache_bits: int = 16
    modes_LK: tuple[tuple[int, ...], ...] | None = None
    """Imposed head modes (0 full, 1 sparse) by layer and KV head, instead of the view."""


FULL, ALL_SPARSE, ELASTIC, HEADS = "full", "all-sparse", "elastic", "static heads"
"""Names of the arms of the three views and of calibrated heads. That of an elastic arm goes on where its router bias or
cache is another, that of heads with their MSR."""
ENDPOINT_ARM = Arm("endpoint")

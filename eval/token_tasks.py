"""Tasks on token ids: is a given continuation what the model would write, and how likely is it?"""

from __future__ import annotations

from typing import Literal

from eval.samples import Reply, Sample, Showing, Tokens, Verdict
from eval.tasks import Task


def likelihood_task(name: str, *, main_score: Literal["exact", "log_prob"]) -> Task:
    """Samples whose fields are `prompt_ids` and `continuation_ids`; scores `exact` (0 or 1) and `log_prob` (nats)."""
    return Task(name, "score", _tokens, _judge, main_score)


def perplexity_task(name: str) -> Task:
    """Samples that also have `parts`; scores `hits` (share of tokens that were the likeliest) and log-probabilities."""
    return Task(name, "score", _tokens, _judge_tokens, "hits")


def _tokens(sample: Sample, _: Showing) -> Tokens:
    return Tokens(sample.fields["prompt_ids"], sample.fields["continuation_ids"], sample.fields.get("parts", 1))


def _judge(_: Sample, __: Showing, reply: Reply) -> Verdict:
    return Verdict({"exact": float(reply.numbers["exact"]), "log_prob": reply.numbers["log_prob"]})


def _judge_tokens(sample: Sample, _: Showing, reply: Reply) -> Verdict:
    names = ["hits", "log_prob", *(f"log_prob_{part}" for part in range(sample.fields["parts"]))]
    return Verdict({name: reply.numbers[name] for name in names})

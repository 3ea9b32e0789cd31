"""Makes tasks for the evaluation runner of the records of the reward benchmarks: prompts, orders, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from elastic_jax.text.judge_prompts import JudgePrompt
from eval.harness.encoding import Encoder
from eval.harness.thinking import answer_of
from eval.samples import Message, Rendered, Reply, Sample, Segment, Showing, Tokens, Verdict
from eval.suites.rewardbench import agreement
from eval.suites.rewardbench.agreement import rank_match
from eval.suites.rewardbench.items import JudgeItem, Order, hashed_order, official_orders, ranks_from_scores
from eval.suites.rewardbench.settings import Ask, Orders
from eval.tasks import Group, LengthPolicy, Task, loaded_group

OFFICIAL_WINDOW = 131_072
OFFICIAL_KEPT = 131_067
_OFFICIAL_HEAD = 65_536

Parsers = Mapping[str, Callable[[str], agreement.Ranks | None]]
"""Parsers by name, each of which reads the ranks of the answers shown out of a reply."""
Prompting = Callable[[JudgeItem, Sequence[str]], JudgePrompt]
"""Makes the prompt for an item, given its answers in the order shown."""


@dataclass(frozen=True)
class JudgePlan:
    """How a judge is asked, and how its replies are read."""

    prompt: Prompting
    parsers: Callable[[JudgeItem], Parsers]
    """All are recorded; the first one gives the score."""
    ask: Ask = "verdict"
    orders: Orders = "official"
    policy: LengthPolicy = "skip"
    official_cut: bool = False
    """Cut prompts of 131,072 tokens and more where the published evaluators do; works on token ids only."""
    max_new_tokens: int = 2048
    seed: int = 0


def official_cut(ids: Sequence[int]) -> Sequence[int]:
    """What the published evaluators keep of a prompt: from 131,072 ids on, the first 65,536 and the last 65,531."""
    if len(ids) < OFFICIAL_WINDOW:
        return ids
    return [*ids[:_OFFICIAL_HEAD], *ids[_OFFICIAL_HEAD - OFFICIAL_KEPT :]]


def judge_groups(
    files: Mapping[str, Sequence[JudgeItem]], plan: JudgePlan, encoder: Encoder | None, limit: int | None = None
) -> list[Group]:
    """Groups of equal task and length; `limit` takes the first records of each, in visiting order.

    Official orders are drawn before the limit applies, so that a limited run shows what the whole one would.
    """
    groups = []
    new_tokens = plan.max_new_tokens if plan.ask == "verdict" else 0
    for items in files.values():
        drawn = official_orders([len(item.answers) for item in items])
        alike: dict[tuple[str, str], list[tuple[JudgeItem, Order]]] = {}
        for index, order in drawn:
            item = items[index]
            alike.setdefault((item.task, item.axes["length"]), []).append((item, order))
        for (task, _), everyone in alike.items():
            members = everyone[:limit]
            samples = [Sample(item.uid, {"item": item}, (), item.axes, new_tokens) for item, _ in members]
            orders = {item.uid: order for item, order in members}
            mean_characters = sum(len(item.question) + sum(map(len, item.answers)) for item, _ in members) / len(
                members
            )
            groups.append(
                loaded_group(
                    judge_task(task, plan, encoder),
                    samples,
                    tokens=int(mean_characters / 4),
                    views=lambda sample, orders=orders: showings(sample.fields["item"], plan, orders[sample.uid]),
                )
            )
    return groups


def judge_task(name: str, plan: JudgePlan, encoder: Encoder | None) -> Task:
    """A runner's task; `encoder` is needed for the official cut only."""

    def template(sample: Sample, showing: Showing) -> Rendered | Tokens:
        rendered = _rendered(sample.fields["item"], showing, plan)
        if not plan.official_cut or encoder is None or _short(rendered):
            return rendered
        ids = encoder.encode(rendered)
        if len(ids) < OFFICIAL_WINDOW:
            return rendered
        options = tuple(tuple(encoder.ids(option)) for option in rendered.options)
        return Tokens(official_cut(ids), option_ids=options, chat=True)

    def metric(sample: Sample, showing: Showing, reply: Reply) -> Verdict:
        if plan.ask == "reward":
            return Verdict({"reward": reply.numbers["reward"]})
        if plan.ask == "choice":
            ranks = ranks_from_scores([reply.numbers["option_0"], reply.numbers["option_1"]])
            return Verdict({"match": rank_match(showing.order, ranks)}, parsed={"choice": ranks})
        said = answer_of(reply.text)
        if not said.strip():
            return Verdict({"match": 0.0}, "empty", parsed={})
        parsed = {parser: read(said) for parser, read in plan.parsers(sample.fields["item"]).items()}
        ranks = next(iter(parsed.values()))
        return Verdict({"match": rank_match(showing.order, ranks)}, "unparsed" if ranks is None else "ok", parsed)

    kind = {"verdict": "generate", "choice": "choose", "reward": "reward"}[plan.ask]
    return Task(
        name, cast(Any, kind), template, metric, "reward" if plan.ask == "reward" else "match", policy=plan.policy
    )


def showings(item: JudgeItem, plan: JudgePlan, official: Order) -> list[Showing]:
    """The orders in which an item is shown, `official` among them; for rewards, its answers one by one."""
    if plan.ask == "reward":
        return [Showing(f"answer{place}", (place,)) for place in range(len(item.answers))]
    best_first = tuple(range(len(item.answers)))
    if plan.orders == "official":
        return [Showing("official", official)]
    if plan.orders == "both":
        order = hashed_order(item.uid, len(item.answers), plan.seed)
        return [Showing("forward", order), Showing("reversed", order[::-1])]
    return [Showing(plan.orders, best_first if plan.orders == "best-first" else best_first[::-1])]


def _rendered(item: JudgeItem, showing: Showing, plan: JudgePlan) -> Rendered:
    shown = [item.answers[rank] for rank in showing.order]
    if plan.ask == "reward":
        turns = [(turn["role"], turn["content"], True) for turn in item.conversation]
        turns.append(("assistant", shown[0], False))
        return Rendered(tuple(Message(cast(Any, role), (Segment(text, cut),)) for role, text, cut in turns))
    prompt = plan.prompt(item, shown)
    question = (Segment(prompt.before), Segment(prompt.context, cuttable=True), Segment(prompt.after))
    messages = (Message.of("system", prompt.system), Message("user", question))
    return Rendered(messages, "[[", ("A", "B")) if plan.ask == "choice" else Rendered(messages)


def _short(rendered: Rendered) -> bool:
    """Whether the text is surely shorter than the window, judged by its bytes: no tokenizer is needed then."""
    return sum(len(message.text.encode()) for message in rendered.messages) < OFFICIAL_WINDOW // 2

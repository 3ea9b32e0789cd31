"""How the two reward benchmarks are put to a judge in each mode.

`compat` does what the published evaluators do, slips included, for figures that can stand beside published ones.
`strict` shows every item in two orders, takes the last verdict and whole rankings only, and shortens the long text of a
prompt rather than skip it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from elastic_jax.errors import ConfigError
from elastic_jax.judge_prompts import JudgePrompt, answers_prompt
from eval.benchmarks import verdicts
from eval.benchmarks.judge_items import JudgeItem
from eval.benchmarks.judge_prompts import memory_prompt
from eval.benchmarks.judging import Ask, JudgePlan, Orders, Parsers
from eval.benchmarks.memory_rewardbench import GENERATION

Mode = Literal["compat", "strict"]


def long_plan(
    mode: Mode, *, ask: Ask = "verdict", orders: Orders | None = None, max_new_tokens: int = 2048, seed: int = 0
) -> JudgePlan:
    """Long-RewardBench; `orders` None means the mode's own.

    Raises:
        ConfigError: a choice between letters is asked for, which says nothing about rankings.
    """
    if ask == "choice":
        raise ConfigError("Long-RewardBench asks for rankings too, which a choice between two letters cannot give.")
    return JudgePlan(
        prompt=_answers,
        parsers=_official_answers if mode == "compat" else _strict_answers,
        **_shared(mode, ask, orders, max_new_tokens, seed),
    )


def memory_plan(
    mode: Mode, *, ask: Ask = "verdict", orders: Orders | None = None, max_new_tokens: int = 2048, seed: int = 0
) -> JudgePlan:
    """MemoryRewardBench; `orders` None means the mode's own."""
    return JudgePlan(
        prompt=_trajectories,
        parsers=_official_trajectories if mode == "compat" else _strict_trajectories,
        **_shared(mode, ask, orders, max_new_tokens, seed),
    )


def _shared(mode: Mode, ask: Ask, orders: Orders | None, max_new_tokens: int, seed: int) -> dict:
    compat = mode == "compat"
    return {
        "ask": ask,
        "orders": orders or ("official" if compat else "both"),
        "policy": "skip" if compat else "context",
        "official_cut": compat,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }


def _answers(item: JudgeItem, shown: Sequence[str]) -> JudgePrompt:
    return answers_prompt(item.question, shown, ranking=item.ranking)


def _trajectories(item: JudgeItem, shown: Sequence[str]) -> JudgePrompt:
    return memory_prompt(item.question, shown, generation=item.axes["group"] == GENERATION)


def _official_answers(item: JudgeItem) -> Parsers:
    return {"official": verdicts.official_ranking if item.ranking else verdicts.official_pair, **_last(item)}


def _strict_answers(item: JudgeItem) -> Parsers:
    return {**_last(item), "official": verdicts.official_ranking if item.ranking else verdicts.official_pair}


def _last(item: JudgeItem) -> Parsers:
    if item.ranking:
        return {"last": partial(verdicts.last_ranking, size=len(item.answers))}
    return {"last": verdicts.last_tag}


def _official_trajectories(item: JudgeItem) -> Parsers:
    return {
        "strict5": verdicts.strict5,
        "last_tag": verdicts.last_tag,
        "first_tag": verdicts.first_tag,
        "last_label": verdicts.last_label,
        "long_rewardbench": verdicts.official_pair,
    }


def _strict_trajectories(item: JudgeItem) -> Parsers:
    official = _official_trajectories(item)
    return {"last_tag": official["last_tag"], **official}

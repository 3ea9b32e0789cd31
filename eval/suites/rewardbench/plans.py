"""The prompts of the two reward benchmarks, and which parsers read the replies in each mode.

`compat` does what the published evaluators do, slips included, so that figures can be compared with published ones.
`strict` shows every item in two orders, takes the last verdict and whole rankings only, and shortens the long text of a
prompt rather than skip it.

The instructions for memory trajectories are here, those for answers in `elastic_jax.text.judge_prompts`. The wording is
this project's own; block labels and verdict forms are the published ones, because the parsers and the judges trained on
them need those. A change of wording needs a new version in the template's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from elastic_jax.text.judge_prompts import JudgePrompt, answers_prompt
from eval.suites.rewardbench import agreement
from eval.suites.rewardbench.asking import Parsers
from eval.suites.rewardbench.items import JudgeItem
from eval.suites.rewardbench.memory import GENERATION

_MEMORY_VERDICT = """\
Start your reply with the verdict and nothing before it: [[A]] if agent A is better, [[B]] if agent B is better. There \
is no tie. Explain the verdict after it."""

_UNDERSTANDING = f"""\
Two agents with a memory, A and B, read the same long text piece by piece. After every piece each agent updated its \
memory, and at the end it had to answer a question from that memory. You see the text with the question, and for each \
agent the record of its memory. Decide which agent managed its memory better.
Look at every update: is it valid, does it keep the information that the question needs, is it free of needless or \
repeated content, and does it say only what the text says? Then look at what the memory leads to at the end: is the \
answer, where there is one, complete and correct, and did earlier mistakes harm it?
Compare the two records step by step. The order in which the agents are shown and the length of the records must not \
count.
{_MEMORY_VERDICT}"""

_GENERATION = f"""\
Two agents with a memory, A and B, wrote a long text in steps from the same instruction. What an agent had written \
served it as memory for the rest. You see the instruction and both texts. Decide which agent did better.
What counts most is whether each requirement of the instruction is met exactly; then whether the information given is \
kept and the text stays faithful to it.
Go through the requirements one by one, and note for each agent whether it passes or fails; a fluent text does not \
make up for a failed requirement. The order in which the agents are shown and the length of the texts must not count.
{_MEMORY_VERDICT}"""


def memory_prompt(question: str, trajectories: Sequence[str], *, generation: bool) -> JudgePrompt:
    """MemoryRewardBench: a verdict on two trajectories in the order shown; `generation` for long-form texts."""
    blocks = [
        f"[The Start of Agent {letter}'s Trajectory]\n{trajectory}\n[The End of Agent {letter}'s Trajectory]"
        for letter, trajectory in zip("AB", trajectories, strict=True)
    ]
    template, system = (
        ("memory-generation@1", _GENERATION) if generation else ("memory-understanding@1", _UNDERSTANDING)
    )
    return JudgePrompt(template, system, question, "[User Question]\n", "\n\n" + "\n\n".join(blocks))


def answers(item: JudgeItem, shown: Sequence[str]) -> JudgePrompt:
    """The prompt of Long-RewardBench: a verdict on two answers, or a ranking of all."""
    return answers_prompt(item.question, shown, ranking=item.ranking)


def trajectories(item: JudgeItem, shown: Sequence[str]) -> JudgePrompt:
    """The prompt of MemoryRewardBench."""
    return memory_prompt(item.question, shown, generation=item.axes["group"] == GENERATION)


def answer_parsers(item: JudgeItem) -> Parsers:
    """Long-RewardBench: the published rule, and the last verdict or the last whole ranking."""
    if item.ranking:
        return {"official": agreement.official_ranking, "last": partial(agreement.last_ranking, size=len(item.answers))}
    return {"official": agreement.official_pair, "last": agreement.last_tag}


def trajectory_parsers(item: JudgeItem) -> Parsers:
    """MemoryRewardBench: the published rule, that of Long-RewardBench, and rules for replies that begin otherwise."""
    return {
        "strict5": agreement.strict5,
        "last_tag": agreement.last_tag,
        "first_tag": agreement.first_tag,
        "last_label": agreement.last_label,
        "long_rewardbench": agreement.official_pair,
    }

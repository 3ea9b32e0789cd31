"""What a judge of answers is told: the instructions, and the question with the answers in the order shown.

Judges are trained (`train.reward`) and evaluated (`eval long-rewardbench`) with the same words. The wording is this
project's own; block labels and verdict forms are the published ones, because the parsers and the
judges trained on them need those. A change of wording needs a new version in the template's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCD"


@dataclass(frozen=True)
class JudgePrompt:
    """A system message and a user message, the latter in three parts of which only `context` may be shortened."""

    template: str
    """Name and version of the wording, for the journal."""
    system: str
    context: str
    """The question as the benchmark gives it, long text included."""
    before: str
    after: str


_PAIR = """\
You compare the answers that two AI assistants gave to the question of a user, and decide which one serves the user \
better. Go by how well each answer follows the instructions, and by its helpfulness, relevance, accuracy, depth, \
originality and detail. The place in which an answer is shown, its length and the assistants' names must not count. \
Write a short comparison first. Then give your verdict in exactly this form: [[A]] if the answer of assistant A is \
better, [[B]] if the answer of assistant B is better."""

_RANKING = """\
You compare the answers that {count} AI assistants gave to the question of a user, and rank them from best to worst. \
Go by how well each answer follows the instructions, and by its helpfulness, relevance, accuracy, depth, originality \
and detail. The place in which an answer is shown, its length and the assistants' names must not count.
Your reply has two parts. Write [Analysis] and your comparison of the answers, then [Ranking] and the letters of all \
{count} assistants in double brackets, the best one first, for instance [[{example}]]."""


def answers_prompt(question: str, answers: Sequence[str], *, ranking: bool) -> JudgePrompt:
    """Long-RewardBench: a verdict on two answers, or a ranking of up to four, given in the order shown."""
    letters = LETTERS[: len(answers)]
    blocks = [
        f"[The Start of Assistant {letter}'s Answer]\n{answer}\n[The End of Assistant {letter}'s Answer]"
        for letter, answer in zip(letters, answers, strict=True)
    ]
    system = _RANKING.format(count=len(answers), example=">".join(letters)) if ranking else _PAIR
    template = "answers-ranking@1" if ranking else "answers-pair@1"
    return JudgePrompt(template, system, question, "[User Question]\n", "\n\n" + "\n\n".join(blocks))

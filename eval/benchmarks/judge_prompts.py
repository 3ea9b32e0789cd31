"""What a judge is told: the instructions, and the question with the answers in the order shown.

The wording is this project's own; block labels and verdict forms are the published ones, because the parsers and the
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

"""Records that need a text as a whole or only its end: summaries, continuations of prose and code, few-shot labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from train.data.corpus import Corpus
from train.data.foreign import Evidence
from train.data.needles import COLOURS
from train.data.records import CODE, ICL, SUMMARIZATION, Record
from train.data.windows import Windows

ANSWER_TOKENS = 64
"""Length of a continuation that is asked for."""

DOCUMENTED_SHARE = 0.3
"""Summaries of documented modules among the summarization records of a corpus that also has prose. Plain prose is the
harder case for a router: the same text with a fact hidden in it needs other heads."""

SUMMARY_REQUEST = "Summarize the text above in a few sentences."
CODE_REQUEST = "Write the next lines of the code above."


def summary(corpus: Corpus, tokens: int, windows: Windows, rng: np.random.Generator) -> Record:
    """A module and its docstring, or plain prose to continue where no summary is at hand."""
    if corpus.documented and (not corpus.prose or rng.random() < DOCUMENTED_SHARE):
        body, docstring = corpus.documented[rng.integers(len(corpus.documented))]
        answer = windows.head(docstring, min(4 * ANSWER_TOKENS, tokens // 2))
        context = windows.head(body, tokens - windows.count(answer))
        return Record(context, SUMMARY_REQUEST, answer, SUMMARIZATION, is_prefix=False)
    context, answer = _split_tail(windows.random(corpus.prose, tokens, rng))
    return Record(context, "", answer, SUMMARIZATION, is_prefix=False)


def code(corpus: Corpus, tokens: int, windows: Windows, rng: np.random.Generator) -> Record:
    """The beginning of a source file and its next lines, with or without a request."""
    context, answer = _split_tail(windows.random(corpus.code, tokens, rng, lines=True))
    return Record(context, CODE_REQUEST if rng.random() < 0.5 else "", answer, CODE, is_prefix=False)


def labelled_snippets(corpus: Corpus, tokens: int, windows: Windows, rng: np.random.Generator) -> Record:
    """Few-shot classification: snippets of two to four texts, labelled with arbitrary words; one more is asked."""
    texts = corpus.prose + corpus.code
    classes = min(int(rng.integers(2, 5)), len(texts))
    sources = [texts[i] for i in rng.choice(len(texts), size=classes, replace=False)]
    labels = rng.choice(COLOURS, size=classes, replace=False)
    shots: list[str] = []
    shown: list[int] = []
    used = 0
    while used < tokens:
        shown.append(int(rng.integers(classes)))
        shots.append(_snippet(sources[shown[-1]], windows, rng))
        used += windows.count(shots[-1]) + 3
    asked = shown[int(rng.integers(len(shown)))]
    context = "\n\n".join(f"{shot} {labels[label]}" for shot, label in zip(shots, shown, strict=True))
    question = _snippet(sources[asked], windows, rng)
    return Record(context, question, str(labels[asked]), ICL, is_prefix=False)


def _snippet(text: str, windows: Windows, rng: np.random.Generator) -> str:
    return f"Text: {' '.join(windows.random((text,), int(rng.integers(24, 64)), rng).split())}\nLabel:"


def solved_stories(stories: Sequence[Evidence], tokens: int, windows: Windows, rng: np.random.Generator) -> Record:
    """Few-shot question answering: short stories with their questions answered; the last answer is asked."""
    shots: list[str] = []
    used = 0
    while True:
        item = stories[int(rng.integers(len(stories)))]
        shot = f"{' '.join(item.facts)}\nQuestion: {item.question}\nAnswer:"
        used += windows.count(shot) + 3
        if used > tokens and shots:
            return Record("\n\n".join(shots), shot, item.answer, ICL, is_prefix=False)
        shots.append(f"{shot} {item.answer}")


def _split_tail(passage: str) -> tuple[str, str]:
    """Splits a passage into context and the lines (or words) of about `ANSWER_TOKENS` tokens at its end."""
    cut = max(len(passage) - 4 * ANSWER_TOKENS, len(passage) // 2)
    for separator in ("\n", " "):
        place = passage.find(separator, cut)
        if cut <= place < len(passage) - ANSWER_TOKENS:
            return passage[:place], passage[place:]
    return passage[:cut], passage[cut:]

"""Metrics of free answers: token F1, ROUGE-L, edit similarity, class names, numbers, multiple choice.

Each compares one reply with one reference and gives 0 to 1; over several references the best counts. Definitions
follow the published descriptions of LongBench (arXiv 2308.14508) and LongBench v2 (arXiv 2412.15204).

RULER's string-match metrics (arXiv 2404.06654): are the references, word for word, in the reply?
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_HAN = re.compile(r"[\u3400-\u9fff]")
_WIDE_PUNCTUATION = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》「」『』【】〔〕–—‘’“”…·"


def answer_tokens(text: str) -> list[str]:
    """Words in lower case without punctuation and articles; Chinese text character by character."""
    text = text.lower().translate(_PUNCTUATION)
    if _HAN.search(text):
        return [mark for mark in text if not mark.isspace() and mark not in _WIDE_PUNCTUATION]
    return _ARTICLES.sub(" ", text).split()


def token_f1(reply: str, reference: str) -> float:
    """F1 of the tokens that reply and reference share, counted with repeats."""
    said, wanted = answer_tokens(reply), answer_tokens(reference)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    return 2 * shared / (len(said) + len(wanted))


def rouge_l(reply: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (characters for Chinese)."""
    said, wanted = _rouge_words(reply), _rouge_words(reference)
    if not said or not wanted:
        return 0.0
    common = _longest_common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted))


def _rouge_words(text: str) -> list[str]:
    if _HAN.search(text):
        return [mark for mark in text if not mark.isspace()]
    return text.split()


def _longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """By bits: one wide integer holds a row of the table, so that reports of thousands of words take no time."""
    where: dict[str, int] = {}
    for place, word in enumerate(b):
        where[word] = where.get(word, 0) | 1 << place
    row = 0
    for word in a:
        grown = row | where.get(word, 0)
        row = grown & ~(grown - ((row << 1) | 1))
    return row.bit_count()


def classification(reply: str, gold: str, classes: Sequence[str]) -> float:
    """1 / number of class names found in the reply if the gold one is among them, else 0.

    A found name that is part of the gold name, and not the gold name itself, does not count.
    """
    found = [name for name in classes if name in reply]
    found = [name for name in found if name == gold or name not in gold]
    return 1 / len(found) if gold in found else 0.0


def number_share(reply: str, gold: str) -> float:
    """Share of the numbers in the reply that equal the gold number; 0 if there is none."""
    numbers = re.findall(r"\d+", reply)
    return numbers.count(str(int(gold))) / len(numbers) if numbers else 0.0


def paragraph_share(reply: str, gold: str) -> float:
    """`number_share` for a gold such as `Paragraph 7`."""
    number = re.search(r"\d+", gold)
    return number_share(reply, number.group()) if number else 0.0


def code_similarity(reply: str, reference: str) -> float:
    """Edit similarity of the reply's first line that is code: no comment, no fence."""
    lines = [line for line in reply.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//"))]
    return edit_similarity(lines[0] if lines else "", reference)


def edit_similarity(a: str, b: str) -> float:
    """1 - (insertions + deletions) / (length of both), in whole percent as fuzzywuzzy's ratio has it."""
    if not a and not b:
        return 1.0
    common = _longest_common_subsequence(list(a), list(b))
    return round(100 * 2 * common / (len(a) + len(b))) / 100


_CHOICES = (re.compile(r"[Tt]he correct answer is \(([A-D])\)"), re.compile(r"[Tt]he correct answer is ([A-D])\b"))


def chosen_letter(reply: str) -> str | None:
    """The letter of LongBench v2's answer sentence, with or without brackets, stars left aside; None if none."""
    plain = reply.replace("*", "")
    for form in _CHOICES:
        found = form.search(plain)
        if found:
            return found.group(1)
    return None


def first_line(reply: str) -> str:
    """The first line that is not blank at the start."""
    return reply.lstrip("\n").partition("\n")[0]


_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(reply: str) -> str:
    """The reply as RULER compares it: control characters as line breaks, no blanks around."""
    return _CONTROL.sub("\n", reply.strip()).strip()


def match_all(reply: str, references: Sequence[str]) -> float:
    """Share of the references that the reply contains, whatever the case."""
    said = cleaned(reply).lower()
    return sum(reference.lower() in said for reference in references) / len(references)


def match_any(reply: str, references: Sequence[str]) -> float:
    """1 if the reply contains any of the references, whatever the case."""
    said = cleaned(reply).lower()
    return float(any(reference.lower() in said for reference in references))

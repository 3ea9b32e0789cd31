"""ROUGE-L of whole texts, equal to that of the package `rouge` 1.0.1, which LongBench's published scores come from."""

from __future__ import annotations

from collections.abc import Sequence

_SMOOTHING = 1e-8


def rouge_l_of_words(reply: str, reference: str) -> float:
    """F1 of distinct words that lie on a longest common subsequence of any two sentences (Lin 2004, summary level).

    Words stand between white space, sentences between full stops. The package counts each distinct word once for the
    whole text, and adds 1e-8 to the sum of precision and recall, so that equal texts score just below 1.
    """
    said, wanted = _sentences(reply), _sentences(reference)
    if not said or not wanted:
        return 0.0
    common = {word for theirs in wanted for ours in said for word in _common_subsequence(theirs, ours)}
    recall = len(common) / len({word for sentence in wanted for word in sentence})
    precision = len(common) / len({word for sentence in said for word in sentence})
    return 2 * recall * precision / (recall + precision + _SMOOTHING)


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; one of white space alone has a single empty word, as in the package."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """Words of one longest common subsequence: of several, that which the package finds, its order reversed."""
    # lengths[i][j]: length of the longest common subsequence of the first i words of a and the first j words of b
    lengths = [[0] * (len(b) + 1)]
    for word in a:
        above, row = lengths[-1], [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        lengths.append(row)
    words, i, j = [], len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            words.append(a[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words

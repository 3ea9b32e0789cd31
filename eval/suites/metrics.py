"""Metrics of free answers: token F1, ROUGE-L, edit similarity, class names, numbers, multiple choice.

Each compares one reply, without its thinking, with one reference and returns 0 to 1; of several references the best
one counts. They equal LongBench's published metrics (arXiv 2308.14508), which use the packages `rouge` 1.0.1, `jieba`
0.42.1 and `fuzzywuzzy` 0.18.0; the answer sentence is that of LongBench v2 (arXiv 2412.15204).

`match_all` and `match_any` are RULER's string-match metrics (arXiv 2404.06654): whether a reply contains the
references word for word.
"""

from __future__ import annotations

import re
import string
import warnings
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from elastic_jax.errors import ConfigError
from eval.harness.thinking import answer_of

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE_SMOOTHING = 1e-8
_HAN = re.compile(r"[\u3400-\u9fff]")
_WIDE_PUNCTUATION = str.maketrans(
    "",
    "",
    string.punctuation
    + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕"
    + "〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏",
)


def token_f1(reply: str, reference: str, *, chinese: bool | None = None) -> float:
    """F1 of the words that reply and reference share, counted with repeats, in lower case without punctuation.

    Args:
        chinese: whether jieba cuts the words; otherwise white space separates them, and articles do not count. By
            default that depends on whether one of the texts has Chinese characters.
    """
    words = _chinese_tokens if _is_chinese(reply, reference, chinese) else _english_tokens
    said, wanted = words(reply), words(reference)
    shared = sum((Counter(said) & Counter(wanted)).values())
    return 2 * shared / (len(said) + len(wanted)) if shared else 0.0


def rouge_l(reply: str, reference: str, *, chinese: bool | None = None) -> float:
    """F1 of distinct words that lie on a longest common subsequence of any two sentences (Lin 2004, summary level).

    White space separates words, unless `chinese` (see `token_f1`) says otherwise; full stops separate sentences. The
    package counts each distinct word of the whole text once, and adds 1e-8 to the sum of precision and recall, so that
    equal texts score just below 1.
    """
    if _is_chinese(reply, reference, chinese):
        reply, reference = " ".join(chinese_words(reply)), " ".join(chinese_words(reference))
    said, wanted = _sentences(reply), _sentences(reference)
    if not said or not wanted:
        return 0.0
    common = {word for theirs in wanted for ours in said for word in _common_subsequence(theirs, ours)}
    recall = len(common) / len({word for sentence in wanted for word in sentence})
    precision = len(common) / len({word for sentence in said for word in sentence})
    return 2 * recall * precision / (recall + precision + _ROUGE_SMOOTHING)


def _sentences(text: str) -> list[list[str]]:
    """Words of each sentence; a sentence of white space alone has a single empty word, as in the package."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_subsequence(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """Words of a longest common subsequence, last word first; of several, the one that the package finds."""
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


def _is_chinese(reply: str, reference: str, wanted: bool | None) -> bool:
    return bool(_HAN.search(reference) or _HAN.search(reply)) if wanted is None else wanted


def _english_tokens(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _chinese_tokens(text: str) -> list[str]:
    plain = ("".join(word.lower().translate(_WIDE_PUNCTUATION).split()) for word in chinese_words(text))
    return [word for word in plain if word]


def chinese_words(text: str) -> list[str]:
    """The words of a text in order, white space and punctuation included.

    Raises:
        ConfigError: jieba is not installed.
    """
    return list(_segmenter().cut(text))


@cache
def _segmenter() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba 0.42.1 is older than today's rules for escapes in strings
        try:
            import jieba
        except ImportError as error:
            raise ConfigError(
                "Scores of Chinese answers need the word segmenter of the benchmark: pip install "
                "'elastic-jax[longbench]', or name English tasks with --tasks."
            ) from error
        segmenter = jieba.Tokenizer()
        # its own `initialize` would load a cache that anybody may have put into the folder of temporary files
        segmenter.FREQ, segmenter.total = segmenter.gen_pfdict(segmenter.get_dict_file())
        segmenter.initialized = True
        return segmenter


def classification(reply: str, gold: str, classes: Sequence[str]) -> float:
    """1 / number of class names found in the reply if the gold one is among them, else 0.

    A found name that is a part of the gold name does not count. The published loop skips the name after each one that
    it drops, and so does this one: a skipped name counts in any case.
    """
    found = [name for name in classes if name in reply]
    for name in found:
        if name in gold and name != gold:
            found.remove(name)
    return 1 / len(found) if gold in found else 0.0


def number_share(reply: str, gold: str) -> float:
    """Share of the numbers in the reply that equal the gold number, digit by digit; 0 if there is none."""
    numbers = re.findall(r"\d+", reply)
    return numbers.count(gold) / len(numbers) if numbers else 0.0


def paragraph_share(reply: str, gold: str) -> float:
    """`number_share` for a gold such as `Paragraph 7`."""
    number = re.search(r"(?:Paragraph |段落)(\d+)", gold)
    return number_share(reply, number.group(1)) if number else 0.0


def code_similarity(reply: str, reference: str) -> float:
    """Edit similarity of the reference and the reply's first line of code, which is neither comment nor fence."""
    lines = [line for line in reply.lstrip("\n").split("\n") if not any(mark in line for mark in ("`", "#", "//"))]
    return edit_similarity(lines[0] if lines else "", reference)


def edit_similarity(a: str, b: str) -> float:
    """2 * characters in matching blocks / characters of both, in whole percent: fuzzywuzzy's ratio by `difflib`.

    The published scores were made without python-Levenshtein, with which fuzzywuzzy gives slightly other ratios.
    """
    if a == b:
        return 1.0
    return round(100 * SequenceMatcher(None, a, b).ratio()) / 100 if a and b else 0.0


_CHOICES = (re.compile(r"[Tt]he correct answer is \(([A-D])\)"), re.compile(r"[Tt]he correct answer is ([A-D])\b"))


def chosen_letter(reply: str) -> str | None:
    """The letter in LongBench v2's answer sentence, with or without brackets or asterisks; None without a sentence."""
    plain = answer_of(reply).replace("*", "")
    for form in _CHOICES:
        found = form.search(plain)
        if found:
            return found.group(1)
    return None


def first_line(reply: str) -> str:
    """The first line after any empty lines at the start."""
    return reply.lstrip("\n").partition("\n")[0]


_CONTROL = re.compile(r"[\x00-\x1f]")


def cleaned(reply: str) -> str:
    """The answer in a reply as RULER compares it: control characters become line breaks, outer blanks are removed."""
    return _CONTROL.sub("\n", answer_of(reply).strip()).strip()


def match_all(reply: str, references: Sequence[str]) -> float:
    """Share of the references that the reply contains, whatever the case."""
    said = cleaned(reply).lower()
    return sum(reference.lower() in said for reference in references) / len(references)


def match_any(reply: str, references: Sequence[str]) -> float:
    """1 if the reply contains any of the references, whatever the case."""
    said = cleaned(reply).lower()
    return float(any(reference.lower() in said for reference in references))

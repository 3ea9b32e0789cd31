"""LongBench's metrics against the packages that its published scores come from."""

import random
import warnings
from collections import Counter

import pytest

from eval.suites.metrics import chinese_words, edit_similarity, rouge_l, token_f1

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the packages are older than today's Python
    import jieba
    from fuzzywuzzy import fuzz
    from rouge import Rouge

ENGLISH = (
    "The report says that the agency should improve its oversight, and it found three gaps. A U.S. court ruled in "
    "2019: costs rose by 5 percent! An audit of the budget began; Congress approved the plan in May and spent most"
).split()
CHINESE = (
    "北京大学上海工作会议讨论了预算和时间表，决定下周再开一次会。"
    "他在杭州的AI实验室研究Transformer模型，第3次！\n “好” 吗？"
)
CODE = "return x + 1\n# note\n```\nself.value = value // 2\nfor i in range(10):\n    print(i)\n"


def pairs(pool, count=200):
    """Texts of one pool, the second of each pair with much of the first."""
    rng = random.Random(7)
    join = " ".join if isinstance(pool, list) else "".join
    for _ in range(count):
        first = [rng.choice(pool) for _ in range(rng.randrange(1, 60))]
        second = [rng.choice(pool) if rng.random() < 0.4 else mark for mark in first]
        rng.shuffle(second) if rng.random() < 0.3 else None
        yield join(first), join(second[rng.randrange(len(second)) // 2 :])


def excerpts(text, count=200):
    rng = random.Random(3)
    for _ in range(count):
        starts = [rng.randrange(len(text)) for _ in range(2)]
        yield tuple(text[start : start + rng.randrange(1, 40)] for start in starts)


def published_rouge(reply, reference):
    try:
        return Rouge().get_scores([reply], [reference], avg=True)["rouge-l"]["f"]
    except ValueError:  # a text without words, which the published evaluation scores 0
        return 0.0


def published_f1(said, wanted):
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("texts", [pairs(ENGLISH), [("", "a"), ("...", "a"), (". a", "a. a"), ("a", "a")]])
def test_rouge_l_is_that_of_the_package(texts):
    for reply, reference in texts:
        assert rouge_l(reply, reference) == pytest.approx(published_rouge(reply, reference), abs=1e-9)


@pytest.mark.parametrize("make", [pairs, excerpts])
def test_chinese_scores_are_over_the_words_of_jieba(make):
    marks = str.maketrans("", "", "，。！？“”.:,\n ")
    for reply, reference in make(CHINESE):
        said, wanted = (list(jieba.cut(text)) for text in (reply, reference))
        assert chinese_words(reply) == said
        spaced = published_rouge(" ".join(said), " ".join(wanted))
        assert rouge_l(reply, reference, chinese=True) == pytest.approx(spaced, abs=1e-9)
        plain = [[word.lower().translate(marks) for word in words if word.translate(marks)] for words in (said, wanted)]
        assert token_f1(reply, reference, chinese=True) == pytest.approx(published_f1(*plain), abs=1e-9)


def test_edit_similarity_is_that_of_the_package():
    for a, b in [*excerpts(CODE), *pairs(ENGLISH), ("", ""), ("", "a"), ("a" * 300, "a" * 299 + "b")]:
        assert edit_similarity(a, b) == fuzz.ratio(a, b) / 100


def test_a_language_that_is_given_decides_over_that_of_the_text():
    assert token_f1("He lives in 北京", "in Beijing 北京", chinese=False) == pytest.approx(4 / 7)

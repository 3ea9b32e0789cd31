import numpy as np
import pytest

from train.data.corpus import Corpus, from_standard_library
from train.data.windows import Windows
from train.heads.questions import tell
from train.heads.settings import RETRIEVAL


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    whole = from_standard_library()
    return Corpus(whole.prose[:6], whole.code[:6], ())


@pytest.fixture
def told(corpus, tokenizer):
    def make(kind, seed=0, tokens=1500, questions=4):
        return tell(kind, corpus, tokens, questions, Windows(tokenizer), np.random.default_rng(seed))

    return make


@pytest.mark.parametrize("kind", sorted({*RETRIEVAL} - {"labels"}))
@pytest.mark.parametrize("seed", range(3))
def test_every_answer_is_in_the_text_and_asked_for(told, kind, seed):
    found = told(kind, seed)
    assert 1 <= len(found.asked) <= 4
    assert len({asked.question for asked in found.asked}) == len(found.asked)
    for asked in found.asked:
        assert asked.answer.split()[-1] in found.context
        assert asked.answer not in asked.question and asked.answer not in asked.lead


def test_each_fact_has_distractors_of_its_kind(told):
    context = told("needles").context
    for mark in ("The pass key of the", "The secret word of", "was born in", "One of the special numbers for"):
        assert context.count(mark) >= 2, mark


def test_facts_in_code_are_comment_lines(told):
    found = told("code_needles")
    for asked in found.asked:
        line = next(line for line in found.context.splitlines() if asked.answer in line)
        assert line.startswith("# ")


def test_variables_are_assigned_before_they_are_passed_on(told):
    chains = [found for seed in range(8) for found in [told("chains", seed)] if "VAR " in found.context]
    assert chains
    for found in chains:
        for asked in found.asked:
            names = asked.answer.split()
            places = [found.context.index(f"VAR {name} =") for name in names]
            assert places == sorted(places)


def test_labels_are_scored_where_they_stand(told):
    found = told("labels")
    assert not found.asked and len(found.scored) == 8  # twice the questions
    for begin, end in found.scored:
        assert found.context[:begin].endswith("Label: ")
        assert found.context[end : end + 1] == "\n"


@pytest.mark.parametrize("kind", ["prose", "code"])
def test_the_end_of_running_text_is_scored(told, kind):
    found = told(kind)
    ((begin, end),) = found.scored
    assert end == len(found.context) and begin == 3 * end // 4


def test_texts_are_as_long_as_asked(told, tokenizer):
    for kind in RETRIEVAL:
        count = Windows(tokenizer).count(told(kind, tokens=2000).context)
        assert 1900 <= count <= 2900, (kind, count)

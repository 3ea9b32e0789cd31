"""What every prompt of RULER promises: its length, its needles, its answer, the same for the same seed."""

import json
from collections import Counter

import pytest
from cheap_tokenizer import CheapTokenizer

from elastic_jax.errors import ConfigError, DataError
from eval.harness.encoding import Encoder
from eval.samples import Reply, Showing
from eval.suites.haystack import read_texts
from eval.suites.ruler.niah import FORMS, Essay
from eval.suites.ruler.questions import read_questions
from eval.suites.ruler.tasks import TASKS, RulerSources, family, make_sample, ruler_groups

RULER_TOKENS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
"""Room for the answer in the constants.py of RULER."""
WITHOUT_FILES = [name for name in TASKS if family(name) != "qa"]


@pytest.fixture(scope="module")
def squad(tmp_path_factory):
    """A SQuAD file: 3 articles of 40 paragraphs of very different lengths."""
    path = tmp_path_factory.mktemp("qa") / "squad.json"
    data = []
    for article in range(3):
        paragraphs = []
        for number in range(40):
            text = f"In {article}{number:02} the keeper was Name{article}{number}. " + "It rained again. " * (
                number * 3
            )
            answers = [{"text": f"Name{article}{number}", "answer_start": 20}] * 2
            question = {"question": f"Who was the keeper in {article}{number:02}?", "answers": answers, "id": "x"}
            impossible = {"question": "Why?", "answers": [], "is_impossible": True, "id": "y"}
            paragraphs.append({"context": text, "qas": [impossible, question]})
        data.append({"title": str(article), "paragraphs": paragraphs})
    path.write_text(json.dumps({"version": "2", "data": data}))
    return path


@pytest.fixture(scope="module")
def sources(squad):
    essay = Essay(list(read_texts(None).values()))
    questions = dict.fromkeys(("qa_1", "qa_2"), read_questions(squad))
    return RulerSources(Encoder(CheapTokenizer(), chat=True), lambda: essay, questions)


def tokens_of(sample, sources) -> int:
    return len(sources.encoder.encode(sample.fields["draft"].rendered())) + sample.max_new_tokens


@pytest.mark.parametrize("length", [4096, 32768, pytest.param(131072, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TASKS)
def test_a_prompt_just_fits_its_budget_and_holds_its_needles(name, length, sources):
    sample = make_sample(name, length, 0, sources)
    assert 0.98 * length <= tokens_of(sample, sources) <= length
    draft, needles = sample.fields["draft"], sample.notes["needles"]
    for start, text in needles:
        assert draft.context[start : start + len(text)] == text
    if family(sample.uid) == "niah":
        assert len(needles) == FORMS[name].inserted * FORMS[name].per_key
        hidden = " ".join(text for _, text in needles)
        assert all(draft.context.count(value) == 1 and value in hidden for value in sample.references)
        if FORMS[name].haystack != "needle":
            assert draft.context.count("special magic") == len(needles)


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_the_same_for_the_same_seed_and_differ_otherwise(name, sources):
    (group,) = ruler_groups([name], [2048], 3, sources)
    (again,) = ruler_groups([name], [2048], 3, sources)
    texts = [group.build(index).fields["draft"] for index in range(3)]
    assert again.build(2).fields["draft"] == texts[2]  # whatever was built before
    assert len({draft.context for draft in texts}) == 3
    other = RulerSources(sources.encoder, sources.essay, sources.questions, seed=1)
    assert make_sample(name, 2048, 0, other).fields["draft"].context != texts[0].context


@pytest.mark.parametrize("name", TASKS)
def test_the_references_score_1_and_nothing_scores_0(name, sources):
    (group,) = ruler_groups([name], [2048], 1, sources)
    sample = group.build(0)
    said = Reply(" " + ", ".join(sample.references))
    assert group.task.metric(sample, Showing(), said).scores["match"] == 1
    nothing = group.task.metric(sample, Showing(), Reply("\x00 \n"))
    assert nothing.scores["match"] == 0 and nothing.status == "empty"
    assert sample.max_new_tokens == RULER_TOKENS[family(name)]


def test_the_chain_of_variables_is_in_order_and_leads_to_every_name(sources):
    sample = make_sample("vt", 4096, 0, sources)
    lines = [text for _, text in sample.notes["needles"]]
    assert lines[0].startswith(f"VAR {sample.references[0]} = ") and lines[0].rpartition(" ")[2].isdigit()
    for line, name, before in zip(lines[1:], sample.references[1:], sample.references, strict=False):
        assert line == f"VAR {name} = VAR {before}"
    starts = [start for start, _ in sample.notes["needles"]]
    assert starts == sorted(starts)


@pytest.mark.parametrize(("length", "often", "seldom"), [(2048, 6, 1), (8192, 30, 3)])
def test_common_words_come_as_often_as_they_should(length, often, seldom, sources):
    sample = make_sample("cwe", length, 0, sources)
    counts = Counter(sample.fields["draft"].context.split()[1::2])
    assert {counts[word] for word in sample.references} == {often}
    assert {count for word, count in counts.items() if word not in sample.references} == {seldom}


def test_coded_words_follow_their_law(sources):
    sample = make_sample("fwe", 4096, 0, sources)
    counts = Counter(sample.fields["draft"].context.split())
    ranked = [word for word, _ in counts.most_common(4)]
    assert ranked == ["...", *sample.references]
    assert counts[ranked[1]] == pytest.approx(counts["..."] / 4, abs=2)
    assert counts[ranked[3]] > max(count for word, count in counts.items() if word not in ranked)


def test_questions_come_in_file_order_with_all_their_answers(sources):
    for index in range(2):
        sample = make_sample("qa_1", 2048, index, sources)
        assert sample.references == (f"Name0{index}",)
        assert sample.fields["draft"].after.endswith(f"Who was the keeper in 00{index}?")
        assert sample.references[0] in sample.fields["draft"].context


def test_needles_of_many_samples_are_spread_over_the_text(sources):
    depths = []
    for index in range(40):
        sample = make_sample("niah_single_1", 1024, index, sources)
        depths.append(sample.notes["needles"][0][0] / sample.notes["context"])
    assert {int(4 * depth) for depth in depths} == {0, 1, 2, 3}


def test_what_cannot_be_made_is_refused(sources):
    with pytest.raises(ConfigError, match="no task 'niah'; it has niah_single_1"):
        ruler_groups(["niah"], [1024], 1, sources)
    with pytest.raises(ConfigError, match="give it with --qa-1"):
        ruler_groups(["qa_1"], [1024], 1, RulerSources(sources.encoder, sources.essay))
    with pytest.raises(DataError, match="wants 121 questions, its file has 120"):
        ruler_groups(["qa_1"], [1024], 121, sources)
    with pytest.raises(ConfigError, match="niah_single_1 of 200 tokens: the shortest prompt has"):
        make_sample("niah_single_1", 200, 0, sources)


def test_a_short_haystack_is_repeated_and_an_empty_one_refused():
    essay = Essay(["One two three. " * 50])
    assert len(" ".join(essay.sentences(400)).split()) == 400
    with pytest.raises(DataError, match="2 words"):
        Essay(["two words"])

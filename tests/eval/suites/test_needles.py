import pytest
from cheap_tokenizer import CheapTokenizer

from eval.samples import Reply, Showing
from eval.suites.haystack import Haystack, read_texts
from eval.suites.needles import NEW_TOKENS, probe_groups, scored_answer, written_answer
from eval.suites.probes import PROBE_TASKS, ProbeConfig

DEPTHS = (0, 50, 100)


def groups(generate: bool):
    tokenizer = CheapTokenizer()
    haystack = Haystack(read_texts(None), tokenizer)
    config = ProbeConfig(sink_tokens=0, local_tokens=0)
    task, room = (written_answer, NEW_TOKENS) if generate else (scored_answer, 0)
    return probe_groups(task, PROBE_TASKS, (600,), 2, haystack, tokenizer, config, depths=DEPTHS, new_tokens=room)


@pytest.mark.parametrize("generate", [True, False])
def test_needles_lie_where_the_grid_says(generate):
    for group in groups(generate):
        assert group.count == len(set(group.uids)) == len(DEPTHS) * 2
        for number in range(group.count):
            sample = group.build(number)
            assert sample.uid == group.uids[number]
            question = sample.fields["prompt"].index("\n\nQuestion:")
            depth = sample.fields["prompt"].index(sample.notes["needle"]) / question
            assert depth == pytest.approx(sample.axes["depth"] / 100, abs=0.16)
            tokens = len(sample.fields["prompt_ids"]) + (
                NEW_TOKENS if generate else len(sample.fields["continuation_ids"])
            )
            assert 570 <= tokens <= 600


def test_depths_of_one_sample_share_needle_and_text():
    group = groups(True)[0]
    first, second = group.build(0), group.build(2)
    assert (first.axes["depth"], second.axes["depth"]) == (0, 50)
    assert first.notes["needle"] == second.notes["needle"] and first.references == second.references
    assert sorted(first.fields["prompt"].split()) == sorted(second.fields["prompt"].split())


def test_replies_and_scores_are_judged():
    for generate, right, wrong in (
        (True, lambda sample: Reply(f" {sample.references[0]}."), Reply("I do not know")),
        (
            False,
            lambda sample: Reply(numbers={"exact": 1, "log_prob": -0.1}),
            Reply(numbers={"exact": 0, "log_prob": -9}),
        ),
    ):
        group = groups(generate)[0]
        sample = group.build(0)
        judged = [group.task.metric(sample, Showing(), reply) for reply in (right(sample), wrong)]
        assert [verdict.scores[group.task.main_score] for verdict in judged] == [1, 0]

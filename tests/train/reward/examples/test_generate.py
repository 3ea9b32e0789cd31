import collections

import numpy as np
import pytest

from elastic_jax.errors import ConfigError
from train.reward.examples.generate import KINDS, judge_preferences, judge_records, ranked_answers, records


def test_records_follow_from_the_seed_and_their_number_only():
    assert records(5, 3) == records(9, 3)[:5]
    assert records(5, 3) != records(5, 4)
    assert records(5, 3) != records(5, 3, "evaluation")


def test_the_chosen_answer_is_right_and_the_rejected_ones_lack_it():
    for record in records(300, 0, rejects=3):
        (message,) = record.prompt
        assert record.context in message.content and len(set(record.kinds)) == 3
        stated = {sentence.strip(".").lower() for sentence in message.content.replace("\n", " ").split(". ")}
        parts = [part.strip(".").lower() for part in record.chosen.split(". ")]
        said = parts[0].removeprefix("according to the text, ").removeprefix("the text says that ")
        assert said.removeprefix("as the text states, ") in stated
        assert set(parts[1:]) <= stated
        for kind, rejected in zip(record.kinds, record.rejected, strict=True):
            assert rejected != record.chosen
            if kind != "shuffled":
                assert said not in rejected.lower(), kind


def test_the_sides_share_no_record_and_no_stock_sentence():
    sides = [records(400, 0, side) for side in ("train", "evaluation")]
    assert not {r.prompt for r in sides[0]} & {r.prompt for r in sides[1]}
    for kind in ("refusal", "rude", "off-topic"):
        said = [
            {part.strip(" ?.,") for r in side if r.kinds == (kind,) for part in r.rejected[0].split(". ")}
            for side in sides
        ]
        assert all(said) and not said[0] & said[1]


@pytest.mark.parametrize("side", ["train", "evaluation"])
def test_length_does_not_give_the_answer_away(side):
    made = records(800, 1, side)
    longer = np.array([np.sign(len(r.chosen) - len(r.rejected[0])) for r in made])
    assert 0.4 < (longer > 0).mean() + (longer == 0).mean() / 2 < 0.6
    by_kind = collections.Counter(r.kinds[0] for r in made)
    assert set(by_kind) == set(KINDS) and min(by_kind.values()) > 15


def test_rankings_damage_the_answer_more_and_more():
    for record in records(20, 5):
        answers, scores = ranked_answers(record, 4, 0)
        assert answers[0] == record.chosen and scores == sorted(scores, reverse=True)
        kept = [sum(a == b for a, b in zip(answer.split(), record.chosen.split(), strict=True)) for answer in answers]
        assert kept == sorted(kept, reverse=True) and kept[-1] < kept[0]
        assert all(sorted(answer.split()) == sorted(record.chosen.split()) for answer in answers)


def test_bad_sizes_are_refused():
    with pytest.raises(ConfigError, match="rejects is 9; want 1 to 8"):
        records(1, 0, rejects=9)
    with pytest.raises(ConfigError, match="buildings is 1; want 2"):
        records(1, 0, buildings=1)


def test_judgements_name_the_better_answer():
    pairs, judged = records(60, 2), judge_preferences(60, 2, rejects=2)
    verdicts = collections.Counter()
    for pair, record in zip(pairs, judged, strict=True):
        system, user = record.prompt
        assert "[[A]]" in system.content and record.context in user.content
        first, second = (user.content.index(f"]\n{text}\n[") for text in (pair.chosen, pair.rejected[0]))
        right = "A" if first < second else "B"
        verdicts[right] += 1
        assert record.chosen.endswith(f"[[{right}]]") and f"Assistant {right} answers the question" in record.chosen
        swapped, without = record.rejected
        assert swapped.endswith(f"[[{'BA'['AB'.index(right)]}]]") and "[[" not in without
    assert min(verdicts.values()) > 15
    assert [r.answer for r in judge_records(60, 2)] == [r.chosen for r in judged]
    with pytest.raises(ConfigError, match="with 1 or 2"):
        judge_preferences(1, 0, rejects=3)

import math

import pytest
from cheap_tokenizer import CheapTokenizer

from eval.samples import Reply, Showing
from eval.suites.haystack import Haystack, read_texts
from eval.suites.perplexity import positions_section, window_groups
from eval.tasks import perplexity_task


def test_windows_are_scored_after_their_first_part_and_reported_by_position(tmp_path):
    haystacks = {"prose": Haystack(read_texts(None), CheapTokenizer())}
    (group,) = window_groups(
        perplexity_task, (400,), 2, haystacks, seed=0, prompt_tokens=lambda length: length // 4, scored_parts=3
    )
    records = []
    for index in range(2):
        sample = group.build(index)
        tokens = group.task.template(sample, Showing())
        assert (len(tokens.prompt_ids), len(tokens.continuation_ids), tokens.parts) == (100, 300, 3)
        numbers = {"hits": 0.5, "log_prob": -1.0} | {f"log_prob_{part}": -math.log(10 - part) for part in range(3)}
        verdict = group.task.metric(sample, Showing(), Reply(numbers=numbers))
        assert verdict.scores["hits"] == 0.5
        records.append({"task": "prose", "arm": "full", "axes": dict(sample.axes), "scores": dict(verdict.scores)})
    assert group.build(0).fields["prompt_ids"] != group.build(1).fields["prompt_ids"]
    text = positions_section(records, tmp_path)
    assert "| text | length | arm | n | 2 of 4 | 3 of 4 | 4 of 4 |" in text
    assert "| prose | 400 | full | 2 | 10.00 | 9.00 | 8.00 |" in text
    assert (tmp_path / "positions.png").read_bytes().startswith(b"\x89PNG")


def test_parts_are_the_means_of_their_tokens():
    from tiny import random_ids, tiny_model

    from eval.harness.scoring import Scorer
    from eval.samples import Arm, Prompt, Sample

    ids = random_ids((120,), 0).tolist()
    whole, split = (Prompt(Sample("a", {}), ids[:90], ids[90:], parts=parts) for parts in (1, 3))
    scorer = Scorer(tiny_model())
    one, three = (scorer.score([p], Arm("full"), tokens=160, rows=2, width=32)[0] for p in (whole, split))
    parts = [three[f"log_prob_{part}"] for part in range(3)]
    assert set(three) - set(one) == {"log_prob_0", "log_prob_1", "log_prob_2"}
    assert sum(parts) / 3 == pytest.approx(one["log_prob"], abs=1e-5)
    assert three["log_prob"] == pytest.approx(one["log_prob"], abs=1e-6)
    assert 0 <= one["hits"] <= 1

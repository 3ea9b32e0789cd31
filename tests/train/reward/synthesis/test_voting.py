import pytest

from elastic_jax.errors import ConfigError, DataError
from train.reward.synthesis.settings import VotingConfig
from train.reward.synthesis.voting import INVALID, parse_score, vote

RELEASED_PRIORITY = ("nemotron-70b", "qwen-plus", "mdcure-70b", "qwen2.5-72b", "llama-3.3-70b")
NEMOTRON, QWEN_PLUS, MDCURE, QWEN, LLAMA = RELEASED_PRIORITY
SHOWN = (NEMOTRON, LLAMA, MDCURE, QWEN_PLUS, QWEN)
AS_RELEASED = VotingConfig(RELEASED_PRIORITY, min_consensus=1, invalid_is_cluster=True)


def judgements(*scores):
    texts = (
        "so\n\n[Analysis] no score" if score == INVALID else f"[Analysis] ...\n\n[Score: {score}]" for score in scores
    )
    return dict(zip(SHOWN, texts, strict=True))


@pytest.mark.parametrize(
    ("scores", "sizes", "chosen", "rejected"),
    [
        ((8, 8, 8, 8, 8), (5,), LLAMA, (NEMOTRON, QWEN_PLUS, MDCURE, QWEN)),
        ((4, 2, -1, 4, 4), (3, 1, 1), QWEN, (MDCURE, LLAMA, NEMOTRON, QWEN_PLUS)),
        ((10, 6, 10, 6, 10), (3, 2), QWEN, (QWEN_PLUS, LLAMA, NEMOTRON, MDCURE)),
        ((4, 2, 10, 0, 2), (2, 1, 1, 1), LLAMA, (NEMOTRON, QWEN_PLUS, MDCURE, QWEN)),
        ((7, 4, 10, 6, 6), (2, 1, 1, 1), QWEN, (NEMOTRON, MDCURE, LLAMA, QWEN_PLUS)),
        ((10, 10, 10, 8, 10), (4, 1), LLAMA, (QWEN_PLUS, NEMOTRON, MDCURE, QWEN)),
    ],
)
def test_votes_of_the_released_rows(scores, sizes, chosen, rejected):
    found = vote(judgements(*scores), AS_RELEASED)
    assert (found.sizes, found.chosen, found.rejected) == (sizes, chosen, rejected)
    assert found.objection(AS_RELEASED) is None


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good.\n\n[Score: 8]", 8),
        ("**Score: 4**", 4),
        ("**[Score: 7]**", 7),
        ("[Score: 8]\n[Score: 8]", 8),
        ("[Score:10] \n", 10),
        ("[Score: 8] because it is short", INVALID),
        ("Clarity: 7.5)", INVALID),
        ("[Score: 7.5]", INVALID),
        ("", INVALID),
    ],
)
def test_a_score_counts_at_the_end_only(text, score):
    assert parse_score(text) == score


def test_judgements_without_a_score_are_never_chosen_by_default():
    scores = judgements(-1, -1, -1, 5, 5)
    assert vote(scores, AS_RELEASED).chosen == LLAMA and vote(scores, AS_RELEASED).sizes == (3, 2)
    config = VotingConfig(RELEASED_PRIORITY)
    found = vote(scores, config)
    assert found.chosen == QWEN and found.sizes == (2,) and found.objection(config) is None
    assert found.rejected == (NEMOTRON, MDCURE, LLAMA, QWEN_PLUS)
    assert vote(judgements(-1, -1, -1, -1, -1), config).objection(config) == "no judgement ends with a score"


def test_knobs():
    priority = dict(priority=RELEASED_PRIORITY)
    all_different = vote(judgements(1, 2, 3, 4, 5), VotingConfig(**priority))
    assert all_different.objection(VotingConfig(**priority)) == "fewer than 2 models agree"
    three = VotingConfig(**priority, min_consensus=3)
    assert vote(judgements(1, 1, 3, 4, 5), three).objection(three) == "fewer than 3 models agree"
    assert vote(judgements(1, 1, 1, 4, 5), three).objection(three) is None
    same = VotingConfig(**priority, drop_unanimous=True)
    assert vote(judgements(8, 8, 8, 8, 8), same).objection(same) == "all models agree"
    assert vote(judgements(8, 8, 8, 8, 7), same).objection(same) is None
    assert vote(judgements(8, 8, 8, 8, 7), VotingConfig(**priority, max_rejects=2)).rejected == (QWEN, NEMOTRON)


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="does not name x; it has a"):
        vote({"a": "", "x": ""}, VotingConfig(("a",)))
    with pytest.raises(DataError, match="1 judgements; want two"):
        vote({"a": ""}, VotingConfig(("a",)))
    with pytest.raises(ConfigError, match="names a model twice"):
        VotingConfig(("a", "a"))
    with pytest.raises(ConfigError, match="max_rejects is 0; want at least 1"):
        VotingConfig(max_rejects=0)

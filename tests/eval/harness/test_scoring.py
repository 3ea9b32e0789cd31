import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_ids

from elastic_jax.errors import DataError
from elastic_jax.generation import generate
from eval.harness.scoring import Scorer
from eval.samples import VIEWS, Arm, Prompt, Sample

ROUTING = {"full": "full", "sparse": "sparse", "elastic": None}
LENGTHS = (150, 97, 131)
WIDTH = 6


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model)


def prompts() -> list[list[int]]:
    return [random_ids((length,), seed).tolist() for seed, length in enumerate(LENGTHS)]


def prompt_of(name: str, prompt_ids, continuation_ids=(), **rest) -> Prompt:
    return Prompt(Sample(name, {}), prompt_ids, continuation_ids, **rest)


def score(scorer: Scorer, samples: list[Prompt], view):
    return scorer.score(samples, Arm(view, view), tokens=160, rows=4, width=WIDTH)


@pytest.mark.parametrize("view", VIEWS)
def test_exact_means_what_greedy_decoding_writes(model, scorer, view):
    padded = np.zeros((3, 150), np.int32)
    for row, prompt in enumerate(prompts()):
        padded[row, : len(prompt)] = prompt
    written = generate(
        model,
        jnp.asarray(padded),
        lengths=jnp.asarray(LENGTHS),
        max_new_tokens=WIDTH,
        routing=ROUTING[view],
        stop_tokens=(),
    )
    answers = np.asarray(written.tokens).tolist()
    right = [prompt_of(str(row), prompt, answers[row]) for row, prompt in enumerate(prompts())]
    scores = score(scorer, right, view)
    assert [s["exact"] for s in scores] == [True] * 3
    np.testing.assert_allclose([s["msr"] for s in scores], written.routing.msr(), atol=1e-6)

    for place in range(WIDTH):
        wrong = []
        for sample in right:
            ids = list(sample.continuation_ids)
            ids[place] = (ids[place] + 1) % 64
            wrong.append(prompt_of("wrong", sample.prompt_ids, ids))
        assert [s["exact"] for s in score(scorer, wrong, view)] == [False] * 3


def test_log_probability_is_that_of_the_plain_model(model, scorer):
    samples = [prompt_of(str(row), ids[: -row - 1], ids[-row - 1 :]) for row, ids in enumerate(prompts())]
    for sample, got in zip(samples, score(scorer, samples, "full"), strict=True):
        ids = jnp.asarray([*sample.prompt_ids, *sample.continuation_ids])[None]
        log_probs = jax.nn.log_softmax(model(ids, routing="full").logits[0])
        first = len(sample.prompt_ids)
        want = np.mean([log_probs[first - 1 + i, token] for i, token in enumerate(sample.continuation_ids)])
        assert got["log_prob"] == pytest.approx(want, abs=1e-5)


def test_a_continuation_longer_than_one_chunk_of_the_head_is_scored_whole(model):
    ids = random_ids((1, 400), seed=5)
    got = Scorer(model).score(
        [prompt_of("long", ids[0, :100].tolist(), ids[0, 100:].tolist())],
        Arm("full", "full"),
        tokens=400,
        rows=1,
        width=300,
    )
    log_probs = jax.nn.log_softmax(model(ids, routing="full").logits[0])
    want = jnp.take_along_axis(log_probs[99:399], ids[0, 100:, None], axis=1).mean()
    assert got[0]["log_prob"] == pytest.approx(float(want), abs=1e-5)


def test_routers_see_the_prompt_only(scorer):
    prompt = prompts()[1]
    samples = [prompt_of(str(seed), prompt, random_ids((WIDTH,), seed).tolist()) for seed in (7, 8)]
    first, second = score(scorer, samples, "elastic")
    assert first["msr"] == second["msr"]
    assert 0 < first["msr"] < 1
    assert first["log_prob"] != second["log_prob"]


def test_forced_views_have_the_sparsity_they_say(scorer):
    samples = [prompt_of("a", prompts()[0], [1, 2])]
    full, sparse = (score(scorer, samples, view)[0] for view in ("full", "sparse"))
    assert (full["msr"], full["esr"], full["esr_last_layer"]) == (0, 0, 0)
    assert sparse["msr"] == 1
    assert 0 < sparse["esr"] < 1 and sparse["esr"] == sparse["esr_last_layer"]


@pytest.mark.parametrize("view", VIEWS)
def test_options_have_the_log_probabilities_of_the_plain_model(model, scorer, view):
    options = [((5, 9), (5, 11), (5, 2)), ((3,), (4,), (8, 8))]
    asked = [prompt_of(str(row), prompts()[row], option_ids=options[row]) for row in range(2)]
    got = scorer.choose(asked, Arm(view, view), tokens=160, rows=3)
    for row, shared in enumerate(([5], [])):
        ids = jnp.asarray([[*prompts()[row], *shared]])
        routing = model(ids[:, : len(prompts()[row])]).routing if view == "elastic" else view  # the prompt's
        want = jax.nn.log_softmax(model(ids, routing=routing).logits[0, -1])
        np.testing.assert_allclose(got[row][0], [want[option[len(shared)]] for option in options[row]], atol=1e-5)


def test_options_that_begin_alike_and_end_are_refused(scorer):
    for options in (((5,), (5, 6)), ((4,), (4,))):
        with pytest.raises(DataError, match="alike"):
            scorer.choose([prompt_of("alike", [1, 2], option_ids=options)], Arm("full"), tokens=16, rows=1)


def test_a_choice_without_options_is_refused(scorer):
    with pytest.raises(DataError, match="Sample bare has no options"):
        scorer.choose([prompt_of("bare", [1, 2])], Arm("full"), tokens=16, rows=1)


def test_imposed_modes_and_router_bias_reach_the_model(scorer):
    sample = [prompt_of("a", prompts()[0], [1, 2])]
    half = Arm("half", modes_LK=((0, 1), (1, 0)))
    assert scorer.score(sample, half, tokens=160, rows=2, width=WIDTH)[0]["msr"] == 0.5
    for bias, msr in ((1e6, 0), (-1e6, 1)):
        arm = Arm("biased", "elastic", router_bias=bias)
        assert scorer.score(sample, arm, tokens=160, rows=2, width=WIDTH)[0]["msr"] == msr


@pytest.mark.parametrize(
    "sample",
    [
        prompt_of("no prompt", [], [1]),
        prompt_of("no answer", [1], []),
        prompt_of("wide answer", [1], [1] * (WIDTH + 1)),
        prompt_of("too long", [1] * 160, [1]),
    ],
    ids=lambda prompt: prompt.sample.uid,
)
def test_samples_that_do_not_fit_are_refused_by_name(scorer, sample):
    with pytest.raises(DataError, match=sample.sample.uid):
        score(scorer, [sample], "full")

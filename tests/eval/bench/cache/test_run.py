"""`bench cache`: what its figures mean, its report, and its going on after an interruption."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, HEADS, random_ids, tiny_model
from torch_stand_in import half_a_second

from elastic_jax.cli import main as elastic_jax_cli
from elastic_jax.errors import ConfigError, DataError
from elastic_jax.generation import make_cache, prefill
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.pages import tree_bytes
from elastic_jax.layout import pad_rows
from elastic_jax.routing import gates_from
from eval.bench.cache.quality import (
    QualityJournal,
    cache_kinds,
    question_through_cache,
    score_continuations,
)
from eval.bench.cache.run import run_cache_bench
from eval.bench.cache.speed import Plan, blank_cache, cache_shapes, largest_batch
from eval.bench.cache.summary import summarise_quality
from eval.bench.settings import BenchCacheSettings
from eval.harness.scoring import Scorer
from eval.samples import Arm, Prompt, Sample, Showing
from eval.suites.needles import scored_answer
from eval.suites.probes import PROBE_TASKS
from eval.tasks import Group, likelihood_task

FILLED = '{"transformers DynamicCache": 1048576, "transformers hqq 2 bits": "hqq is not installed"}'
"""Bytes of the caches of `transformers`, or why there is none."""


@pytest.fixture(scope="module")
def settings(checkpoint) -> BenchCacheSettings:
    """As many rows at equal batch as 8 bits have within the budget, and windows as long as a probe: few programs."""
    return BenchCacheSettings(
        model=str(checkpoint), dtype="float32", dtypes=("float32",), bits=(16, 8), tokens=300, batch=15, budget_mib=1,
        steps=1, rounds=1, key_transforms=("none",), windows=2, scored_tokens=50, quality_tokens=400, probes=2, rows=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("cache")
    settings = dataclasses.replace(settings, quality=True, torch_python=half_a_second(out, FILLED, "0.5"))
    return settings, out, run_cache_bench(settings, out)


def test_the_report_has_every_kind_and_what_is_missing(finished):
    _, out, report = finished
    assert json.loads((out / "cache.json").read_text()) == json.loads(json.dumps(report))
    kinds = {"16", "8/none/3", "8/none/0"}
    assert {row["kind"] for row in report["quality"]["retrieval"]} == kinds
    assert {(row["task"], row["kind"]) for row in report["quality"]["loss"]} == {
        (task, kind) for task in ("prose", "code") for kind in kinds
    }
    equal = {row["kind"]: row for row in report["speed"]["equal"]["float32"]["rows"]}
    assert set(equal) == {"transformers DynamicCache"} | {
        f"{b}, {v}" for b in ("unquantised", "8 bits") for v in ("full", "elastic")
    }
    assert (
        equal["transformers DynamicCache"]["seconds"] == 0.5
        and equal["transformers DynamicCache"]["cache_bytes"] == 1 << 20
    )
    within = report["speed"]["budget"]["float32"]["rows"]
    assert all(row["cache_bytes"] <= 1 << 20 for row in within) and all(row["seconds"] > 0 for row in within)
    page = (out / "cache.md").read_text()
    for words in ("hqq is not installed", "8 bits, 3 outliers", "--bits 16 8", "| unquantised, full |"):
        assert words in page
    assert (out / "cache.png").stat().st_size > 1000
    records = [json.loads(line) for line in (out / "quality.jsonl").read_text().splitlines()[1:]]
    assert {record["key"] for record in records} == {
        f"{task}/400/{index}/{kind}" for task in ("prose", "code", *PROBE_TASKS) for index in (0, 1) for kind in kinds
    }
    assert all(set(record["value"]) == {"exact", "log_prob", "tokens", "frozen"} for record in records)


def test_calibrated_heads_take_the_place_of_the_routers(settings, tmp_path):
    HEADS.save(tmp_path / "heads")
    settings = dataclasses.replace(settings, bits=(16,), heads=str(tmp_path / "heads"))
    report = run_cache_bench(settings, tmp_path / "out")
    assert report["speed"]["equal"]["float32"]["msr"] == 0.5
    with pytest.raises(DataError, match="router: "):
        run_cache_bench(dataclasses.replace(settings, msr=0.75), tmp_path / "out")


def test_a_second_run_measures_nothing_again(finished):
    settings, out, report = finished
    before = [(out / name).read_bytes() for name in ("speed.jsonl", "quality.jsonl")]
    again = run_cache_bench(settings, out)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(report))
    assert [(out / name).read_bytes() for name in ("speed.jsonl", "quality.jsonl")] == before


def test_feeding_through_the_cache_scores_like_one_forward_pass():
    """16 bits exactly, 8 bits nearly; rows of different length, and a row of the batch without sample."""
    model = tiny_model()
    ids = random_ids((2, 400)).tolist()
    texts = [(ids[0][:330], ids[0][330:337]), (ids[1][:300], ids[1][300:303])]
    shown = [Prompt(Sample(f"{row}", {"prompt_ids": text[0]}), *text) for row, text in enumerate(texts)]
    wanted = Scorer(model).score(shown, Arm("full"), tokens=400, rows=2, width=8)
    prompts, lengths = pad_rows([prompt for prompt, _ in texts], 400, 3)
    prompt = prefill(model, jnp.asarray(prompts), jnp.asarray(lengths), gates_from("full", model.config, 3))
    for bits, tolerance in ((16, 1e-4), (8, 0.02)):
        got = score_continuations(model, prompt, lengths, CacheConfig(bits=bits), shown)
        for reply, score in zip(got, wanted, strict=True):
            np.testing.assert_allclose(reply.numbers["log_prob"], score["log_prob"], atol=tolerance)
            assert bits == 8 or reply.numbers["exact"] == score["exact"]
        assert [reply.numbers["tokens"] for reply in got] == [7, 3]


def test_a_question_goes_through_the_cache_before_its_answer_is_scored():
    """What is fed unscored changes nothing but where the exact prefill ends."""
    model, ids = tiny_model(), random_ids((1, 320)).tolist()[0]
    sample = Sample("a", {"prompt_ids": ids[:310], "question_start": 300, "continuation_ids": ids[310:316]})
    whole, fed = (
        Prompt(sample, made.prompt_ids, made.continuation_ids)
        for made in (task("kv").template(sample, Showing()) for task in (scored_answer, question_through_cache))
    )
    assert (len(whole.prompt_ids), len(fed.prompt_ids)) == (310, 300)
    records = []
    for shown in (whole, fed):
        padded, lengths = pad_rows([shown.prompt_ids], 400, 3)
        prompt = prefill(model, jnp.asarray(padded), jnp.asarray(lengths), gates_from("full", model.config, 3))
        records += [reply.numbers for reply in score_continuations(model, prompt, lengths, CacheConfig(), [shown])]
    np.testing.assert_allclose(records[0]["log_prob"], records[1]["log_prob"], atol=1e-4)
    assert records[0]["tokens"] == records[1]["tokens"] == 6


def test_the_share_of_the_gap_that_outliers_close(tmp_path):
    uids = ["prose/10/0", "prose/10/1"]
    loss = Group(likelihood_task("prose", main_score="log_prob"), uids, lambda n: Sample(uids[n], {}), 10)
    kinds = cache_kinds((16, 2), ("none", "hadamard"))
    assert list(kinds) == ["16", "2/none/3", "2/none/0", "2/hadamard/3", "2/hadamard/0"]
    nll = {"16": 2.0, "2/none/0": 2.4, "2/none/3": 2.1, "2/hadamard/0": 2.2, "2/hadamard/3": 2.05}
    with QualityJournal(tmp_path / "j.jsonl", {}) as journal:
        for kind in kinds:
            numbers = [{"log_prob": -nll.get(kind, 2.2), "exact": n == 0} for n in (0, 1)]
            journal.append({f"prose/10/{n}||{kind}": {"numbers": numbers[n]} for n in (0, 1)})
        summary = summarise_quality([loss], [loss], kinds, journal)
    shares = {row["kind"]: (row["own"], row["plain"]) for row in summary["closed"]}
    np.testing.assert_allclose(shares["2/none/3"], (0.75, 0.75))
    np.testing.assert_allclose(shares["2/hadamard/3"], (0.75, 0.875))
    row = next(row for row in summary["loss"] if row["kind"] == "2/none/0")
    np.testing.assert_allclose([row["rise"], row["perplexity"]], [0.4, np.exp(2.4)])
    assert all(row["correct"] == 1 and row["n"] == 2 for row in summary["retrieval"])


PLAN = Plan(CacheConfig(bits=2), np.array([[0, 1], [0, 0]], np.int8), rows=3, tokens=400, room=30)


@pytest.mark.parametrize("bits", [2, 16])
def test_blank_caches_have_the_arrays_of_real_ones(bits):
    plan = dataclasses.replace(PLAN, config=CacheConfig(bits=bits))
    blank = blank_cache(plan, CONFIG, jnp.dtype("float32"))
    kv = (jnp.ones((2, 3, 400, 2, 8)),) * 2
    real = make_cache(plan.config, CONFIG, kv, plan.lengths_B, jnp.asarray(plan.mode_LBK), plan.room)
    assert jax.tree.structure(blank) == jax.tree.structure(real)
    for a, b in zip(jax.tree.leaves(blank), jax.tree.leaves(real), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_array_equal(blank.lengths, real.lengths)
    if bits == 2:
        np.testing.assert_array_equal(blank.quantized, real.quantized)
        np.testing.assert_array_equal(blank.table, real.table)


def test_the_largest_batch_is_the_last_that_fits():
    dtype, budget = jnp.dtype("float32"), 3 << 20
    rows = largest_batch(PLAN, CONFIG, dtype, budget)
    sizes = [tree_bytes(cache_shapes(dataclasses.replace(PLAN, rows=n), CONFIG, dtype)) for n in (rows, rows + 1)]
    assert sizes[0] <= budget < sizes[1] and rows > 3
    assert largest_batch(PLAN, CONFIG, dtype, 1000) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bits", "2", "4"], "want 16, to compare with"),
        (["--bits", "16", "3"], "bits is [16, 3]"),
        (["--no-speed"], "neither speed nor quality"),
        (["--batch", "0"], "batch is 0"),
        (["--scored-tokens", "4096"], "scored_tokens is 4096"),
    ],
)
def test_settings_that_cannot_work_are_refused(checkpoint, tmp_path, capsys, flags, words):
    verb = ["bench", "cache", "--model", str(checkpoint), "--out", str(tmp_path)]
    try:
        code = elastic_jax_cli([*verb, *flags])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_timed_calls_and_the_warming_one_need_room_in_the_model(settings, tmp_path):
    with pytest.raises(ConfigError, match="513 tokens are asked for; the model has 512"):
        run_cache_bench(dataclasses.replace(settings, tokens=511), tmp_path)

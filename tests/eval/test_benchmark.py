"""The verbs as a user gives them, on a tiny model; and the promises of a report with a scripted one."""

import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cheap_tokenizer import CheapTokenizer
from tiny import HEADS

from elastic_jax.cli import main as elastic_jax_cli
from elastic_jax.errors import ConfigError, DataError
from elastic_jax.text.chat import fix_date
from eval.benchmark import run_benchmark
from eval.harness.backends.scripted import ScriptedBackend
from eval.harness.opening import arms_of, open_backend
from eval.harness.settings import split_commas
from eval.samples import Reply
from eval.verbs.ruler import RulerSettings, ruler_benchmark

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
sys.path[:0] = ["tests/support", "tests/eval"]
import test_benchmark as toy

left = int(sys.argv[2])

def answer(prompt):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return toy.sometimes_right(prompt)

toy.run(toy.SEVERAL, toy.Path(sys.argv[1]), answer)
"""


def sometimes_right(prompt) -> Reply:
    right = len(prompt.prompt_ids) % 3
    numbers = {"msr": right / 4, "esr": 0.1, "esr_last_layer": 0.2}
    return Reply(prompt.sample.references[0] if right else "nothing", numbers=numbers)


def ruler(**changes) -> RulerSettings:
    wanted = {"tasks": ("niah_single_1", "vt"), "lengths": (768,), "per_task": 3} | changes
    return RulerSettings(model="toy", **wanted)


SEVERAL = ruler(lengths=(768, 1024), tasks=("niah_single_1", "vt", "cwe"), per_task=4)


def run(settings, out, answer=lambda prompt: prompt.sample.references[0]):
    backend = ScriptedBackend("toy", answer)
    return run_benchmark(ruler_benchmark(settings), settings, out, backend=backend, tokenizer=CheapTokenizer())


def report_files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("results.json", "results.csv", "results.md", "results.png")}


def test_a_run_that_is_killed_ends_in_the_same_report(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(SEVERAL, whole, sometimes_right)
    killed = subprocess.run([sys.executable, "-c", KILLED, str(broken), "19"], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (broken / "results.json").exists()
    lines = (broken / "journal.jsonl").read_bytes()
    assert lines.count(b"\n") == 1 + 19
    (broken / "journal.jsonl").write_bytes(lines + b'{"key": "cut sho')
    run(SEVERAL, broken, sometimes_right)
    assert report_files(broken) == report_files(whole)
    journals = [sorted((out / "journal.jsonl").read_text().splitlines()) for out in (whole, broken)]
    assert journals[0] == journals[1]


def test_the_report_has_every_figure_with_n_interval_settings_and_commit(tmp_path):
    report = run(ruler(), tmp_path)
    rows = {(row["task"], row["arm"]): row for row in report["rows"]}
    assert set(rows) == {(task, arm) for task in ("niah_single_1", "vt") for arm in ("full", "all-sparse", "elastic")}
    assert rows["niah_single_1", "full"]["score"] == 1 and rows["vt", "full"]["score"] == pytest.approx(0.2)
    assert [row["score"] for row in report["means"]] == [pytest.approx(0.6)] * 3
    for row in [*report["rows"], *report["means"]]:
        assert row["n"] in (3, 6) and row["interval"][0] <= row["score"] <= row["interval"][1]
    with (tmp_path / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9 and float(lines[0]["score"]) == 1 and lines[0]["interval_low"]
    markdown = (tmp_path / "results.md").read_text()
    for words in ("| niah_single_1 | 768 | 3 | 100.0 (43.8–100.0) |", "commit", "--lengths 768", "- seed: `0`"):
        assert words in markdown
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))


def test_a_changed_setting_is_refused_and_the_journal_left_alone(tmp_path):
    run(ruler(), tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    with pytest.raises(DataError, match="seed: the journal has 0, this run 1"):
        run(ruler(seed=1), tmp_path)
    with pytest.raises(DataError, match="first_prompts"):
        run(ruler(lengths=(800,)), tmp_path)
    assert (tmp_path / "journal.jsonl").read_bytes() == before


def test_texts_that_the_first_prompts_do_not_show_are_part_of_the_run(tmp_path):
    settings = ruler(tasks=("niah_single_2",), haystack=str(tmp_path / "texts.txt"), per_task=1)
    words = " ".join(f"Sentence {i} of a long story ends here." for i in range(400))
    Path(settings.haystack).write_text(words)
    report = run(settings, tmp_path / "out")
    assert run(settings, tmp_path / "out")["rows"] == report["rows"]
    Path(settings.haystack).write_text(words + " An end.")
    with pytest.raises(DataError, match="inputs: the journal has {'haystack': "):
        run(settings, tmp_path / "out")

    journal = tmp_path / "out" / "journal.jsonl"
    head, rest = journal.read_text().split("\n", 1)
    settings_before = json.loads(head)["settings"]
    del settings_before["inputs"]  # as an earlier version left it
    journal.write_text(json.dumps({"settings": settings_before}) + "\n" + rest)
    assert run(settings, tmp_path / "out")["settings"] == settings_before


def test_a_template_that_writes_the_date_keeps_that_of_the_first_day(tmp_path):
    class Dated(CheapTokenizer):
        chat_template = "{{ strftime_now('%d %b %Y') }}"

        def apply_chat_template(self, turns, *, fixed_dates, **options):
            return f"{fixed_dates} " + super().apply_chat_template(turns, **options)

    def on(day):
        tokenizer = Dated()
        fix_date(tokenizer, day)  # stands for today
        backend = ScriptedBackend("toy", lambda prompt: tokenizer.decode(list(prompt.prompt_ids[:5])))
        settings = ruler(chat=True, per_task=1)
        return run_benchmark(ruler_benchmark(settings), settings, tmp_path, backend=backend, tokenizer=tokenizer)

    first = on("2026-11-29")
    assert first["settings"]["template_date"] == "2026-11-29" and on("2026-12-01") == first


def test_missing_samples_are_said_and_come_with_the_next_run(tmp_path):
    fails = lambda prompt: Reply(error="down") if prompt.sample.uid.endswith("/1") else "nothing"  # noqa: E731
    report = run(ruler(), tmp_path, fails)
    assert (report["done"], report["wanted"]) == (12, 18)
    assert "**Incomplete: 6 of 18 samples are missing.** 6 of them failed" in (tmp_path / "results.md").read_text()
    report = run(ruler(), tmp_path)
    assert report["done"] == 18 and "Incomplete" not in (tmp_path / "results.md").read_text()


def test_shards_of_one_folder_make_one_report(tmp_path):
    done = [run(ruler(shard=shard), tmp_path)["done"] for shard in ("0/3", "2/3", "1/3")]
    assert 0 < done[0] < done[1] < done[2] == 18, "each shard has samples of its own, and the last reads both others"
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["rows"] == run(ruler(), tmp_path / "whole")["rows"]


def test_the_command_of_the_docs_on_a_model(checkpoint, tmp_path):
    words = "eval ruler --dtype float32 --tasks niah_single_1 --per-task 1 --lengths 448 --pattern fa-ssa".split()
    words += ["--views=full,elastic", "--cache-bits", "2", "--model", checkpoint, "--out", tmp_path]
    assert elastic_jax_cli([str(word) for word in words]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    rows = {row["arm"]: row for row in report["rows"]}
    assert list(rows) == ["full", "elastic", "elastic + 2-bit cache"]
    full, elastic, small = rows.values()
    assert (full["msr"], full["esr"]) == (0, 0) and 0 < elastic["msr"] <= 1 and 0 < elastic["esr"] < 1
    assert small["msr"] == elastic["msr"] and small["cache_bytes"] < elastic["cache_bytes"]
    assert all(row["prefill_s"] > 0 and row["decode_s"] > 0 for row in rows.values())
    record = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[1])["value"]
    assert record["prompt_tokens"] + 128 <= 448 and record["new_tokens"] <= 128 and record["notes"]["needles"]


def test_calibrated_heads_are_an_arm_of_their_own(checkpoint, tmp_path):
    HEADS.save(tmp_path / "heads")
    words = ["eval", "perplexity", "--model", checkpoint, "--dtype", "float32", "--lengths", "256", "--windows", "1"]
    words += ["--views", "full,elastic"]
    heads = ["--heads", tmp_path / "heads", "--msr", "0.75", "--forced-msr", "0.5", "--head-scores", tmp_path / "heads"]

    def rows(name: str, *more: object) -> list[dict]:
        assert elastic_jax_cli([str(word) for word in [*words, *more, "--out", tmp_path / name]]) == 0
        return json.loads((tmp_path / name / "results.json").read_text())["rows"]

    plain, compared = rows("plain"), rows("compared", *heads)
    assert [row for row in compared if row["arm"] in ("full", "elastic")] == plain, "these are as without heads"
    sparse = {row["arm"]: row["msr"] for row in compared if row["arm"] not in ("full", "elastic")}
    assert sparse == {"static heads, MSR 0.75": 0.75, "forced MSR 0.5": 0.5}
    with pytest.raises(ConfigError, match="local_blocks is 4, the heads have 2"):
        open_backend(RulerSettings(model=str(checkpoint), heads=str(tmp_path / "heads"), local_blocks=4), None)


@pytest.mark.parametrize(
    ("verb", "words", "files", "says"),
    [
        (
            "needles",
            "--lengths 320 --depths 0,100 --per-cell 1 --tasks kv --views full",
            ["depth_0.png"],
            "| kv | 320 | 100 |",
        ),
        ("perplexity", "--lengths 256 --parts 4 --windows 1 --views full", ["positions.png"], "| 4 of 4 |"),
        ("routing", "--lengths 320 --per-task 1", ["routing.png"], "after the task MLP"),
        ("heads", "--lengths 320 --per-task 1 --tasks kv", ["heads.png", "heads.json"], "layer 0, KV head"),
    ],
)
def test_every_other_verb_on_a_model(checkpoint, tmp_path, verb, words, files, says):
    settings = ["--model", str(checkpoint), "--dtype", "float32", "--batch-tokens", "512", "--out", str(tmp_path)]
    assert elastic_jax_cli(["eval", verb, *words.split(), *settings]) == 0
    assert says in (tmp_path / "results.md").read_text()
    assert all((tmp_path / name).is_file() for name in ["results.csv", "results.json", "results.png", *files])


def test_a_sweep_of_the_router_bias_draws_quality_against_sparsity(tmp_path):
    run(ruler(router_bias=(-1.0, 0.0), cache_bits=(4,), views=("elastic",)), tmp_path, sometimes_right)
    names = [row["arm"] for row in json.loads((tmp_path / "results.json").read_text())["means"]]
    bases = ["elastic, bias -1", "elastic"]
    assert names == [*bases, *(f"{name} + 4-bit cache" for name in bases)]
    assert (tmp_path / "sparsity.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ruler", "--tasks", "niah"], "RULER has no task 'niah'"),
        (["ruler", "--lengths", "0"], "lengths is [0]"),
        (["ruler", "--lengths", "1024"], "the model has 512 positions"),
        (["ruler", "--lengths", "100"], "the shortest prompt has"),
        (["ruler", "--limit", "0"], "limit is 0"),
        (["ruler", "--shard", "2"], "shard is '2'"),
        (["ruler", "--views", "full,elastic,full"], "views has 'full' twice"),
        (["ruler", "--lengths", "448,448"], "lengths has 448 twice"),
        (["ruler", "--router-bias", "0.1", "0.10000001"], "two runs would be named"),
        (["ruler", "--cache-bits", "16"], "cache_bits has 16"),
        (["ruler", "--chat"], "no chat template"),
        (["ruler", "--haystack", "nowhere", "--tasks", "niah_single_2", "--lengths", "448"], "no text at nowhere"),
        (["ruler", "--endpoint", "here"], "endpoint is 'here'"),
        (["ruler", "--forced-msr", "0.5"], "give --head-scores"),
        (["ruler", "--forced-msr", "0.5", "--head-scores", "nowhere"], "nowhere is no heads.json"),
        (["ruler", "--views", "full,heads"], "--views heads wants calibrated heads"),
        (["ruler", "--heads", "nowhere"], "'nowhere' holds no calibrated heads"),
        (["routing", "--heads", "nowhere"], "leave --views"),
        (["heads", "--heads", "nowhere"], "leave --views"),
        (["longbench"], "no data of the benchmark"),
        (["longbench", "--data", "nowhere"], "no file or folder at nowhere"),
        (["longbench", "--data", "x", "--version", "2", "--tasks", "qasper"], "leave --tasks out"),
        (["longbench", "--data", "x", "--forced-choice"], "version 2"),
        (["needles", "--depths", "0,200"], "depths is [0, 200]"),
        (["perplexity", "--parts", "1"], "parts is 1; want at least 2"),
        (["routing", "--cache-bits", "2"], "leave --views"),
        (["heads", "--views", "sparse"], "leave --views"),
    ],
)
def test_what_makes_no_sense_is_refused_before_work_starts(checkpoint, tmp_path, capsys, words, message):
    out = tmp_path / "out"
    status = elastic_jax_cli(["eval", *words, "--model", str(checkpoint), "--out", str(out)])
    assert status == 2 and message in capsys.readouterr().err.replace("\n", " ")
    assert not (out / "results.json").exists()


def test_a_dry_run_makes_prompts_and_writes_nothing(checkpoint, tmp_path, capsys):
    words = "eval ruler --tasks niah_single_1,niah_multikey_2 --lengths 448 --dry-run --out".split()
    words.append(str(tmp_path / "out"))
    assert elastic_jax_cli([*words, "--model", str(checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "# niah_multikey_2, about 448 tokens: 25 samples, the first has" in said and "tokens to read in all" in said
    assert not (tmp_path / "out").exists()


def test_an_evaluation_that_lacks_samples_exits_with_a_code_of_its_own(checkpoint, tmp_path, capsys):
    words = "eval ruler --lengths 448 --per-task 1 --tasks niah_single_1 --retries 0".split()
    words += ["--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "x", "--model", str(checkpoint)]
    assert elastic_jax_cli([*words, "--out", str(tmp_path)]) == 3
    assert "incomplete, 1 of 1 samples are missing" in capsys.readouterr().err


def test_an_endpoint_takes_the_place_of_the_model():
    settings = RulerSettings(endpoint="http://localhost:1/v1", endpoint_model="m", cache_bits=(2,))
    assert [arm.name for arm in arms_of(settings)] == ["endpoint"]
    with pytest.raises(ConfigError, match="--endpoint-model"):
        open_backend(RulerSettings(endpoint="http://localhost:1/v1"), None)


def test_the_context_of_an_endpoint_bounds_prompts_and_is_part_of_its_identity():
    settings = {"endpoint": "http://localhost:1/v1", "endpoint_model": "m"}
    plain = open_backend(RulerSettings(**settings), None)
    bounded = open_backend(RulerSettings(**settings, endpoint_tokens=4096), None)
    assert (plain.max_tokens, bounded.max_tokens) == (None, 4096)
    assert "endpoint_tokens" not in plain.identity() and bounded.identity()["endpoint_tokens"] == 4096
    with pytest.raises(ConfigError, match="endpoint_tokens is 0"):
        RulerSettings(**settings, endpoint_tokens=0)


def test_lists_take_commas_and_blanks():
    words = ["--lengths", "1,2", "3", "--out", "a,b", "--tasks=x,y", "--router-bias", "-1,0"]
    wanted = "--lengths 1 2 3 --out a,b --tasks x y --router-bias -1 0".split()
    assert split_commas(words, "--lengths", "--tasks", "--router-bias") == wanted

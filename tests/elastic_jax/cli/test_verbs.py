"""generate, inspect and convert on a checkpoint of a few kilobytes: what they print and write, and what they refuse."""

import json
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml
from checkpoints import edit_json
from tiny import HEADS

from elastic_jax import cli
from elastic_jax.generation import generate
from elastic_jax.model import to_params
from elastic_jax.weights import from_pretrained
from elastic_jax.weights.tokenizer import load_tokenizer


def run(capsys, *arguments: object) -> str:
    """Output of a command that must succeed."""
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def refusal(capsys, *arguments: object) -> str:
    """Error line of a command that must be refused."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    return error


def test_generate_is_reproducible_and_reads_prompts_from_files(capsys, checkpoint, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("abc " * 20)
    common = ["generate", "--model", checkpoint, "--dtype", "float32", "--max-new-tokens", 5]
    first = run(capsys, *common, "--prompt", "abc " * 20)
    assert first == run(capsys, *common, "--prompt-file", prompt)
    sampled = [run(capsys, *common, "--prompt", "abc", "--temperature", 2, "--seed", seed) for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_generate_reports_what_it_did(capsys, checkpoint):
    common = ["generate", "--model", checkpoint, "--prompt", "abc", "--max-new-tokens", "3", "--stats"]
    for routing, msr in (("full", "MSR 0.00"), ("sparse", "MSR 1.00")):
        assert cli.main([*map(str, common), "--routing", routing]) == 0
        assert msr in capsys.readouterr().err


def test_generate_takes_a_quantised_cache(capsys, checkpoint):
    common = ["generate", "--model", checkpoint, "--prompt", "abc " * 60, "--routing", "full", "--cache-mib", 0.001]
    said = [refusal(capsys, *common, "--cache.group", 32, "--cache.bits", bits) for bits in (16, 2)]
    unquantised, two_bits = (int(re.search(r"needs (\d+) bytes", line)[1]) for line in said)
    assert two_bits < unquantised


def test_generate_answers_many_prompts_as_it_answers_each(capsys, checkpoint, tmp_path):
    texts = ["abc " * 20, "hello", "the quick brown fox"]
    plain, records = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("\n\n".join(texts))
    records.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    common = ["generate", "--model", checkpoint, "--dtype", "float32", "--max-new-tokens", 5]
    common += ["--cache.bits", 2, "--cache.group", 32, "--cache.residual", 8]
    many = [*common, "--slots", 2, "--prompts"]
    lines = [json.loads(line) for line in run(capsys, *many, plain, "--stream").splitlines()]
    answers = {line["index"]: line["answer"] for line in lines if "answer" in line}
    for index, text in enumerate(texts):
        assert run(capsys, *common, "--prompt", text) == answers[index] + "\n"
        told = "".join(line["piece"] for line in lines if line["index"] == index and "piece" in line)
        assert answers[index].startswith(told)
    assert [json.loads(line)["answer"] for line in sorted(run(capsys, *many, records).splitlines())] == [
        answers[index] for index in range(3)
    ]


def test_an_answer_ends_at_the_end_token_of_the_tokenizer_too(capsys, checkpoint, tmp_path):
    folder, file = shutil.copytree(checkpoint, tmp_path / "model"), tmp_path / "prompts.txt"
    file.write_text("abc")
    common = ["generate", "--model", folder, "--dtype", "float32", "--max-new-tokens", 5]
    assert json.loads(run(capsys, *common, "--prompts", file))["finish"] == "length"
    model, tokenizer = from_pretrained(folder, dtype="float32"), load_tokenizer(folder)
    first = generate(model, np.array([tokenizer.encode("abc")]), max_new_tokens=1).tokens[0, 0]
    edit_json(folder / "tokenizer_config.json", eos_token=tokenizer.convert_ids_to_tokens(int(first)))
    assert json.loads(run(capsys, *common, "--prompts", file)) == {"index": 0, "answer": "", "finish": "stop"}
    assert run(capsys, *common, "--prompt", "abc") == "\n"


def test_files_of_prompts_that_cannot_be_used_are_refused(capsys, checkpoint, tmp_path):
    broken = tmp_path / "prompts.jsonl"
    common = ["generate", "--model", checkpoint, "--prompts", broken]
    assert "cannot be read" in refusal(capsys, *common)
    broken.write_text(" ")
    assert "holds no prompt" in refusal(capsys, *common)
    assert "beside another prompt" in refusal(capsys, *common, "--prompt", "x")
    assert "--cache-mib" in refusal(capsys, *common, "--cache-mib", 1)
    whole = tmp_path / "prompts.JSON"
    whole.write_text('[\n{"prompt": "abc"}\n]')
    assert "one JSON object a line" in refusal(capsys, "generate", "--model", checkpoint, "--prompts", whole)


BAD_LINES = {
    b'{"prompt": "no \xff UTF-8"}': ":2: 'utf-8' codec",
    b'{"prompt": 1}': ":2: want a JSON object",
    b'{"prompt": null}': ":2: want a JSON object",
    b"{": ":2:",
    b'{"prompt": ""}': "the prompt is empty",
    b'{"prompt": "%s"}' % (b"x" * 600): "the model has 512 positions",
}


@pytest.mark.parametrize("bad", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_prompt_in_a_file_costs_the_others_nothing(capsys, checkpoint, tmp_path, bad):
    file, good = tmp_path / "prompts.jsonl", [b'{"prompt": "abc"}', b'{"prompt": "the fox", "system": null}']
    common = ["generate", "--model", checkpoint, "--dtype", "float32", "--max-new-tokens", 5, "--temperature", 1]

    def answers(code, *lines):
        file.write_bytes(b"\n".join(lines))
        assert cli.main([*map(str, common), "--prompts", str(file)]) == code
        out, err = capsys.readouterr()
        return {line["index"]: line for line in map(json.loads, out.splitlines())}, err

    wanted, err = answers(0, good[0], good[0], good[1])
    assert err == ""
    got, err = answers(3, good[0], bad, good[1])
    assert BAD_LINES[bad] in got[1].pop("error") and got.pop(1) == {"index": 1, "answer": None, "finish": "error"}
    assert got == {index: wanted[index] for index in (0, 2)}
    assert err == '1 of 3 prompts failed; their lines say why under "error".\n'


@pytest.mark.parametrize("text", ["None", "-x", "--help me", "- a list", "--max-new-tokens of what?", "~/x", "--debug"])
def test_a_prompt_may_look_like_anything(capsys, text):
    asked = ["--prompt", text] if text != "--debug" else ["--prompt=--debug"]
    printed = yaml.safe_load(run(capsys, "generate", *asked, "--system", "None", "--dry-run"))
    assert (printed["prompt"], printed["system"]) == (text, "None")
    assert yaml.safe_load(run(capsys, "inspect", *asked, "--dry-run"))["prompt"] == [text]


def test_a_second_file_of_settings_is_refused(capsys, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"prompt: {name}\n")
    assert "--config is given 2 times" in refusal(
        capsys, "generate", "--config", tmp_path / "a", f"--config={tmp_path / 'b'}", "--dry-run"
    )


def test_inspect_agrees_with_the_model(capsys, checkpoint, tokenizer, tmp_path):
    text = "the quick brown fox jumps over the lazy dog " * 3
    common = ["inspect", "--model", checkpoint, "--dtype", "float32", "--prompt", text, "hello"]
    picture = tmp_path / "pictures" / "heat.png"
    long, short = json.loads(run(capsys, *common, "--json", "--png", picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    model = from_pretrained(checkpoint, dtype="float32")
    ids = np.asarray([tokenizer.encode(text)])
    routing = model(ids).routing
    assert (np.asarray(long["heads"]) == "sparse").tolist() == np.asarray(routing.mode[:, 0] == 1).tolist()
    assert long["tokens"] == ids.size
    assert long["msr"] == pytest.approx(float(routing.msr()[0]))
    assert long["esr"] == pytest.approx(float(routing.esr(np.asarray([ids.size]), model.config)[0]))
    assert short["esr"] == 0 and short["tokens"] == len(tokenizer.encode("hello"))
    assert len(json.loads(run(capsys, *common, text + "again", "--json"))) == 3, "prompts that begin alike"
    table = run(capsys, *common)
    assert "hello" in table and f"{long['msr']:.2f}" in table


def test_inspect_router_bias_turns_every_head(capsys, checkpoint):
    common = ["inspect", "--model", checkpoint, "--prompt", "hello there", "--json", "--router-bias"]
    assert json.loads(run(capsys, *common, "1e6"))[0]["msr"] == 0
    assert json.loads(run(capsys, *common, "-1e6"))[0]["msr"] == 1


def test_verbs_take_calibrated_heads(capsys, checkpoint, tmp_path):
    HEADS.save(tmp_path / "heads")
    named = ["--model", checkpoint, "--dtype", "float32", "--prompt", "hello there", "--heads", tmp_path / "heads"]
    for flags, heads in (([], HEADS.modes()), (["--msr", 0.75], HEADS.modes(0.75))):
        (told,) = json.loads(run(capsys, "inspect", *named, *flags, "--json"))
        assert (np.asarray(told["heads"]) == "sparse").tolist() == (heads == 1).tolist()
        assert told["probability_full"] == (1.0 - heads).tolist()
    routers = json.loads(run(capsys, "inspect", *named[:6], "--json"))
    assert json.loads(run(capsys, "inspect", *named, "--routing", "routers", "--json")) == routers
    for flags, msr in (([], "0.50"), (["--msr", "1"], "1.00"), (["--routing", "full"], "0.00")):
        run_told = cli.main([str(word) for word in ["generate", *named, *flags, "--max-new-tokens", 1, "--stats"]])
        assert run_told == 0 and f"MSR {msr}" in capsys.readouterr().err
    run(capsys, "convert", *named[:4], "--heads", tmp_path / "heads", "--format", "elastic", "--out", tmp_path / "new")
    (told,) = json.loads(run(capsys, "inspect", "--model", tmp_path / "new", "--prompt", "hello", "--json"))
    assert told["msr"] == 0.5


@pytest.mark.parametrize("form", ["hf", "elastic"])
def test_convert_keeps_every_weight(capsys, checkpoint, tmp_path, form):
    run(capsys, "convert", "--model", checkpoint, "--format", form, "--out", tmp_path / form)
    before, after = (to_params(from_pretrained(folder, dtype="auto")) for folder in (checkpoint, tmp_path / form))
    kept = [path for path in before if form == "elastic" or ".router." not in path]
    assert all(np.array_equal(before[path], after[path]) for path in kept)


def test_converted_router_brings_its_decisions_to_the_backbone(capsys, checkpoint, tmp_path):
    for form in ("router", "hf"):
        run(capsys, "convert", "--model", checkpoint, "--format", form, "--out", tmp_path / form)
    common = ["inspect", "--prompt", "some words", "--json", "--model"]
    together = run(capsys, *common, tmp_path / "hf", "--router", tmp_path / "router")
    assert together == run(capsys, *common, checkpoint)


def test_convert_overwrites_only_when_told(capsys, checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    common = ["convert", "--model", checkpoint, "--format", "router", "--out", out]
    assert "--overwrite" in refusal(capsys, *common)
    assert "holds no checkpoint" in refusal(capsys, *common, "--overwrite")
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_dry_run_prints_the_settings_and_writes_nothing(capsys, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert "format: router" in run(
        capsys, "convert", "--model", checkpoint, "--format", "router", "--out", out, "--dry-run"
    )
    assert not out.exists()
    settings = tmp_path / "generate.yaml"
    common = ["generate", "--prompt", "x", "--top-k", 7, "--dry-run"]
    settings.write_text(run(capsys, *common))
    assert run(capsys, "generate", "--config", settings, "--dry-run") == settings.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate"], "want exactly one prompt"),
        (["generate", "--prompt", "a", "--prompt-file", "b"], "want exactly one prompt"),
        (["generate", "--prompt", ""], "the prompt is empty"),
        (["generate", "--prompt", "x", "--chat"], "no chat template"),
        (["generate", "--prompt", "x" * 600], "positions"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "temperature is -1"),
        (["generate", "--prompt", "x", "--temperature", "nan"], "temperature is nan"),
        (["generate", "--prompt", "x", "--router-bias", "nan"], "router_bias is nan"),
        (["generate", "--prompt", "x", "--router-bias", "inf"], "router_bias is inf; want a finite number"),
        (["inspect", "--prompt", "x", "--png", "picture.foo"], "ending '.foo'; want one of"),
        (["inspect", "--prompt", "x", "--png", "/proc/nope/x.png"], "cannot write /proc/nope/x.png"),
        (["convert", "--out", "/proc/nope/x"], "cannot write /proc/nope/x"),
        (["generate", "--prompt", "x", "--heads", "nowhere"], "'nowhere' holds no calibrated heads"),
        (["generate", "--prompt", "x", "--msr", "0.8"], "msr=0.8 was given without heads"),
        (["generate", "--prompt", "x", "--routing", "heads"], 'routing "heads" needs calibrated heads'),
        (["inspect"], "no prompt"),
        (["inspect", "--prompt", "x" * 600], "512"),
        (["convert"], "no directory to write"),
    ],
)
def test_refusals(capsys, checkpoint, arguments, says):
    assert says in refusal(capsys, *arguments, "--model", checkpoint)


def test_a_cache_that_cannot_be_is_refused(capsys, checkpoint):
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "--prompt", "x", "--cache.bits", "3", "--model", str(checkpoint)])
    assert stop.value.code == 2
    assert "cache bits is 3; want 2, 4, 8 or 16." in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\xff"])
def test_unusable_prompt_file_is_named(capsys, checkpoint, tmp_path, content):
    prompt = tmp_path / "prompt.txt"
    if content is not None:
        prompt.write_bytes(content)
    assert str(prompt) in refusal(capsys, "generate", "--model", checkpoint, "--prompt-file", prompt)


def test_ctrl_c_leaves_no_half_written_checkpoint(checkpoint, tmp_path):
    """A real SIGINT at the moment the weights are written."""
    out = tmp_path / "out"
    program = (
        "import os, signal, sys, safetensors.numpy as files\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # background jobs start with it ignored
        "files.save_file = lambda *a, **k: os.kill(os.getpid(), signal.SIGINT)\n"
        "from elastic_jax.cli import main\n"
        f"sys.exit(main(['convert', '--model', {str(checkpoint)!r}, '--out', {str(out)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stderr.splitlines()[-1] == "Interrupted."
    assert list(tmp_path.iterdir()) == []

"""The demonstration: its prompts are what it says they are, and the whole tour leaves what it promises."""

import json

import pytest

from elastic_jax import cli, smollm2
from elastic_jax.text.split import split_of
from elastic_jax.weights.tokenizer import load_tokenizer
from train.demo.prompts import NEEDLE, PASS_KEY, QUESTION, demo_prompts

BLOCK, LOCAL_BLOCKS = 128, 2
"""Of the shipped router."""


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(smollm2.model_file())


@pytest.mark.parametrize("tokens", [512, 1536, 4096])
def test_prompts_have_the_length_asked_for(tokenizer, tokens):
    for prompt in demo_prompts(tokenizer, tokens):
        assert 0.9 * tokens <= len(prompt.ids) <= tokens + 8


@pytest.mark.parametrize("tokens", [768, 1536])
def test_sparse_heads_cannot_see_the_pass_key_from_the_question(tokenizer, tokens):
    ids = demo_prompts(tokenizer, tokens)[0].ids
    text = tokenizer.decode(ids)
    assert text.count(PASS_KEY) == 1 and text.endswith(QUESTION)
    begin = len(tokenizer.encode(text[: text.index(NEEDLE)]))
    end = begin + len(tokenizer.encode(NEEDLE))
    assert begin >= BLOCK
    assert end <= (len(ids) // BLOCK - LOCAL_BLOCKS + 1) * BLOCK


def test_pass_key_was_never_trained_on():
    assert split_of(PASS_KEY) == "evaluation"


@pytest.mark.slow
def test_whole_tour(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), "--prompt-tokens", "768", "--train-steps", "2"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "11 of 11 arrays read back" in told and "21 of 21 arrays read back" in told
    assert (tmp_path / "routing.png").is_file()
    steps = [json.loads(line)["step"] for line in (tmp_path / "train-1" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1]
    assert (tmp_path / "train-1" / "router" / "router.safetensors").is_file()


@pytest.mark.parametrize("flag", [["--prompt-tokens", "100"], ["--train-steps", "-1"]])
def test_sizes_out_of_range_are_refused(flag, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path), *flag]) == 2
    assert "; want" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []

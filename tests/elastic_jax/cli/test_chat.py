"""A conversation in the terminal."""

import io
import re

import numpy as np
import pytest
from chat_tokenizers import chat_tokenizer
from tiny import write_checkpoint

from elastic_jax import cli, from_pretrained
from elastic_jax.generation import generate
from elastic_jax.text.chat import chat_text
from elastic_jax.text.stops import answer_text
from elastic_jax.text.tokens import encode_chat

SYSTEM = "You know where every key in this house is, and you say it in one word."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("chat") / "model", chat_tokenizer())


@pytest.fixture
def talk(folder, monkeypatch, capsys):
    """Types lines; gives the printed answers, the measurements, and other lines of stderr."""

    def talk(*lines, **flags):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        options = {"model": folder, "dtype": "float32", "routing": "sparse", "system": SYSTEM, "max-new-tokens": 6}
        options |= {name.replace("_", "-"): value for name, value in flags.items()}
        assert cli.main(["chat", *(f"--{name}={value}" for name, value in options.items())]) == 0
        printed = capsys.readouterr()
        measured = re.findall(r"(\d+) of (\d+) prompt tokens were read before; MSR 1.00", printed.err)
        return printed.out, [(int(reused), int(prompt)) for reused, prompt in measured], printed.err

    return talk


def answer(folder, turns):
    tokenizer = chat_tokenizer()
    ids = encode_chat(tokenizer, chat_text(tokenizer, turns, thinking=True))
    out = generate(
        from_pretrained(folder, dtype="float32"),
        np.array([ids]),
        max_new_tokens=6,
        routing="sparse",
        stop_tokens=[tokenizer.eos_token_id],
    )
    return answer_text(tokenizer, out.tokens[0, : int(out.lengths[0])].tolist())[0]


def test_answers_are_those_of_generate_and_messages_are_read_once(folder, talk):
    turns, want = [{"role": "system", "content": SYSTEM}], ""
    for text in ("Where?", "And now?"):
        turns.append({"role": "user", "content": text})
        turns.append({"role": "assistant", "content": answer(folder, turns)})
        want += turns[-1]["content"] + "\n"
    out, measured, _ = talk("Where?", "", "And now?")
    assert out == want
    (first, length), (second, _) = measured
    assert first == 0 and second >= length, "all of the first prompt"


def test_a_new_conversation_keeps_the_system_message_only(talk):
    once, measured, _ = talk("Where?")
    twice, again, _ = talk("Where?", "/new", "Where?")
    assert twice == once * 2 and [length for _, length in again] == [measured[0][1]] * 2


def test_a_conversation_that_is_too_long_says_so_and_goes_on(talk):
    out, measured, err = talk("Where?", "x " * 200, "Where?", max_length=120)
    assert "begins another one, --max-length makes room" in err and len(measured) >= 1


def test_routers_read_everything_again(talk):
    _, _, err = talk("Where?", "And now?", routing="routers")
    assert len(re.findall(r"; 0 of \d+ prompt tokens", err)) == 2


def test_a_model_without_template_is_refused_at_once(checkpoint, capsys):
    assert cli.main(["chat", "--model", str(checkpoint)]) == 2
    assert "no chat template" in capsys.readouterr().err

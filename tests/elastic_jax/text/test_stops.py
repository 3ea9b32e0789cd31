import json

import pytest
from chat_tokenizers import chat_tokenizer

from elastic_jax.errors import CheckpointError
from elastic_jax.text.growing import GrowingText
from elastic_jax.text.stops import answer_text
from elastic_jax.weights.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    chat_tokenizer().save_pretrained(tmp_path)
    stops = ["\n###", "User:", "<|im_start|>"]
    (tmp_path / "generation_config.json").write_text(json.dumps({"stop_strings": stops}))
    return load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("written", "text", "stopped"),
    [
        ("Yes.\n### Instruction", "Yes.", True),
        ("Yes. User: and\n###", "Yes. ", True),
        ("Yes.<|im_start|>user\n###", "Yes.", True),
        ("Yes.\n## Us", "Yes.\n## Us", False),
        ("Yes.<|im_end|>", "Yes.", False),
    ],
)
def test_an_answer_ends_at_its_first_stop_string(tokenizer, written, text, stopped):
    ids = tokenizer.encode(written)
    assert answer_text(tokenizer, ids) == (text, stopped)
    growing, pieces = GrowingText(tokenizer), []
    for token in ids:
        if not growing.stopped:
            pieces.append(growing.add(token))
    assert "".join([*pieces, growing.rest()]) == text
    assert not any("#" in piece or "U" in piece for piece in pieces) or not stopped


def test_further_stop_strings_end_an_answer_too(tokenizer):
    ids = tokenizer.encode("Yes, END of it.\n###")
    growing, pieces = GrowingText(tokenizer, ("END of",)), []
    for token in ids:
        if not growing.stopped:
            pieces.append(growing.add(token))
    assert growing.stopped and "".join(pieces) == growing.whole == "Yes, "
    assert answer_text(tokenizer, ids, ("END of",)) == ("Yes, ", True)


@pytest.mark.parametrize("stops", [[""], 3, {"a": 1}, [None]])
def test_stop_strings_of_other_kinds_are_refused(tokenizer, tmp_path, stops):
    (tmp_path / "generation_config.json").write_text(json.dumps({"stop_strings": stops}))
    with pytest.raises(CheckpointError, match="want a text, or a list of texts"):
        load_tokenizer(tmp_path)


def test_without_stop_strings_nothing_is_cut():
    tokenizer = chat_tokenizer()
    assert answer_text(tokenizer, tokenizer.encode("User:\n###")) == ("User:\n###", False)

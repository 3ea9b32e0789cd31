"""Tokenizers from a directory and from GGUF metadata agree, template and special tokens included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import GOLDEN
from gguf_files import write_gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.weights import from_pretrained, save_pretrained
from elastic_jax.weights.gguf import open_reader
from elastic_jax.weights.gguf_tokenizer import Vocabulary
from elastic_jax.weights.tokenizer import load_tokenizer

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
TEXTS = [
    "The keeper counted 12 ships,   then 345 more.\n\n",
    "it's 3.14159 -- 1,000,000 ²³ ½ ١٢٣",
    "total:  7 =    42",
    "naïve café 日本語 👩‍👧 \u00a0\t x\n",
    "<|im_start|>user\nhi<|im_end|>",
    "",
]


def train() -> PreTrainedTokenizerFast:
    """A byte-level BPE that takes digits one by one, as SmolLM2's does."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator([Path(__file__).read_text(), *TEXTS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SPECIAL[1], eos_token=SPECIAL[2], unk_token=SPECIAL[0], chat_template=TEMPLATE
    )


def write(file: Path, tokenizer: PreTrainedTokenizerFast, **changes: object) -> Path:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(state["model"]["vocab"], key=state["model"]["vocab"].__getitem__)
    values = {
        "ggml.model": "gpt2",
        "ggml.pre": "smollm",
        "ggml.tokens": tokens,
        "ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
        "chat_template": TEMPLATE,
    } | changes
    kept = {f"tokenizer.{key}": value for key, value in values.items() if value is not None}
    return write_gguf(file, "llama_tied", extra_metadata=kept)


@pytest.fixture(scope="module")
def original() -> PreTrainedTokenizerFast:
    return train()


def assert_same(got: PreTrainedTokenizerFast, want: PreTrainedTokenizerFast) -> None:
    for text in TEXTS:
        ids = want(text)["input_ids"]
        assert got(text)["input_ids"] == ids
        assert got.decode(ids) == text
    chat = [{"role": "user", "content": "12 ships?"}]
    assert got.apply_chat_template(chat, tokenize=False) == want.apply_chat_template(chat, tokenize=False)
    assert (got.bos_token, got.eos_token, got.unk_token) == (want.bos_token, want.eos_token, want.unk_token)


def test_from_gguf_and_through_an_export(original: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", original)
    assert_same(load_tokenizer(file), original)
    save_pretrained(from_pretrained(file), tmp_path / "out")
    assert_same(load_tokenizer(tmp_path / "out"), original)


def test_beginning_token_where_the_file_asks_for_it(original: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "model.gguf", original, **{"ggml.add_bos_token": True}))
    assert tokenizer("ships")["input_ids"] == [1, *original("ships")["input_ids"]]


@pytest.mark.parametrize("rule", ["llama-bpe", "llama3", "llama-v3"])
def test_llama_3_files_do_not_say_that_they_want_it(
    rule: str, original: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "model.gguf", original, **{"ggml.pre": rule}))
    assert tokenizer("ships")["input_ids"][0] == 1


@pytest.mark.parametrize(("token", "rule"), [("<|begin_of_text|>", "Llama 3"), ("<|end|>", "GPT-2")])
def test_files_without_splitting_rule(
    token: str, rule: str, original: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "model.gguf", original, **{"ggml.pre": None})
    vocabulary = [token, *open_reader(file).fields["tokenizer.ggml.tokens"].contents()[1:]]
    tokenizer = load_tokenizer(write(tmp_path / "m.gguf", original, **{"ggml.pre": None, "ggml.tokens": vocabulary}))
    assert f"read as {rule}" in caplog.text
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("12345")
    assert len(words) == (2 if rule == "Llama 3" else 1)


def test_templates_lose_their_byte_order_mark(original: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    file = write(tmp_path / "model.gguf", original, **{"chat_template": "\ufeff" + TEMPLATE})
    assert load_tokenizer(file).chat_template == TEMPLATE
    original.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8-sig")
    assert load_tokenizer(tmp_path / "hf").chat_template == TEMPLATE


def test_digits_in_groups(original: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path / "model.gguf", original, **{"ggml.pre": "llama-bpe"}))
    words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in 12345 days")
    assert [word for word, _ in words] == ["in", "Ġ", "123", "45", "Ġdays"]


def test_sentencepiece_vocabulary(tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / "sentencepiece.json").read_text())
    values = {
        "ggml.model": "llama",
        "ggml.tokens": golden["tokens"],
        "ggml.scores": golden["scores"],
        "ggml.token_type": golden["types"],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
    }
    extra = {f"tokenizer.{key}": value for key, value in values.items()}
    tokenizer = load_tokenizer(write_gguf(tmp_path / "model.gguf", "llama_tied", extra_metadata=extra))
    for text, ids in golden["texts"].items():
        assert tokenizer(text)["input_ids"] == [1, *ids]
        assert tokenizer.decode(ids) == text
    assert tokenizer("</s>", add_special_tokens=False)["input_ids"] == [2]


@pytest.mark.parametrize(
    ("short", "words"), [("tokens", "1 tokens"), ("token_type", "1 types"), ("scores", "1 scores")]
)
def test_lists_of_unequal_length(short: str, words: str, tmp_path: Path) -> None:
    lists = {"tokens": ["a", "b"], "token_type": [1, 1], "scores": [0.0, 0.0]}
    lists[short] = lists[short][:1]
    with pytest.raises(ConfigError, match=words):
        Vocabulary.from_metadata({"ggml.model": "llama"} | {f"ggml.{key}": x for key, x in lists.items()}, "model.gguf")


@pytest.mark.parametrize(("key", "value"), [("ggml.pre", "klingon"), ("ggml.model", "wordpiece")])
def test_vocabularies_of_other_kinds(key: str, value: str, original: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=value):
        load_tokenizer(write(tmp_path / "model.gguf", original, **{key: value}))


@pytest.mark.parametrize("name", ["Qwen2Tokenizer", "LlamaTokenizerFast", "GPT2Tokenizer"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_rules_are_those_of_the_file_whatever_class_it_names(
    name: str, family: str, original: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    original.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": name, "clean_up_tokenization_spaces": True})
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert_same(load_tokenizer(tmp_path), original)
    assert load_tokenizer(tmp_path).clean_up_tokenization_spaces is False


def test_directory(original: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    original.save_pretrained(tmp_path)
    assert_same(load_tokenizer(tmp_path), original)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_tokenizer(GOLDEN / "llama3")
    for damaged in ("{}", "", "[1]", '{"model": {"type": "BPE", "vocab": {"a": -1}}}'):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="cannot be read") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)

"""The score head: where it reads, what does not change it, and its checkpoints."""

import copy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from chat_tokenizers import CHATML, LLAMA, chat_tokenizer
from checkpoints import GOLDEN, WEIGHTS, copy_golden, edit_json, edit_weights, same_bits
from flax import nnx
from safetensors.numpy import load_file
from tiny import CONFIG, random_ids, tiny_reward_model

from elastic_jax.config import ModelConfig
from elastic_jax.errors import CheckpointError, ConfigError, ShapeError
from elastic_jax.files import read_json
from elastic_jax.layout import make_layout
from elastic_jax.model import to_params
from elastic_jax.reward import ElasticRewardModel, score_hidden
from elastic_jax.text.chat import answered_texts
from elastic_jax.text.tokens import encode_chat
from elastic_jax.weights.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def model() -> ElasticRewardModel:
    return tiny_reward_model()


def test_the_head_reads_the_last_token_of_each_packed_sequence() -> None:
    rows = jnp.array([[[1.0, 0, 2], [0.5, -1, 1], [9, 9, 9], [9, 9, 9], [2, 1, 0], [9, 9, 9], [9, 9, 9], [9, 9, 9]]])
    segments = jnp.array([[1, 1, 0, 0, 2, 0, 0, 0]])
    layout = make_layout((1, 8), segment_ids=segments, num_segments=3, block_size=4)
    np.testing.assert_allclose(score_hidden(rows, jnp.array([[0.2], [-0.1], [0.4]]), layout), [[0.6, 0.3, 0.0]], 1e-6)


def test_padding_never_changes_a_score(model: ElasticRewardModel) -> None:
    """It may hold anything, and rows may be wider than the model has positions."""
    ids = np.asarray(random_ids((2, 70)))
    padded = np.pad(ids, ((0, 0), (0, 520 - 70)), constant_values=-100)
    whole, short = model.score(padded, [70, 70]), model.score(padded, [70, 33])
    np.testing.assert_allclose(whole, model.score(ids), rtol=1e-5)
    np.testing.assert_allclose(short[1], model.score(ids[:, :33])[1], rtol=1e-5)
    assert abs(short[1] - whole[1]) > 1e-3


def test_a_score_is_that_of_full_attention_unless_the_routers_are_asked(model: ElasticRewardModel) -> None:
    ids = random_ids((2, 128))
    full, routed = nnx.jit(lambda model, ids: (model(ids, routing="full"), model(ids)))(model, ids)
    np.testing.assert_allclose(model.score(ids), full, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.score(ids, routing=None), routed, rtol=1e-5, atol=1e-5)
    assert abs(model.score(ids) - model.score(ids, routing=None)).max() > 1e-3


def test_packed_sequences_score_as_alone(model: ElasticRewardModel) -> None:
    rows, ids, segments = np.asarray(random_ids((2, 33))), np.zeros((1, 96), np.int32), np.zeros((1, 96), np.int32)
    for index, (start, length) in enumerate([(0, 20), (32, 33)]):
        ids[0, start : start + length], segments[0, start : start + length] = rows[index, :length], index + 1
    packed = nnx.jit(lambda model, ids, segments: model(ids, segment_ids=segments, num_segments=3, routing="full"))
    together = packed(model, ids, segments)
    np.testing.assert_allclose(together[0, :2], model.score(rows, [20, 33]), rtol=1e-5, atol=1e-6)
    assert together[0, 2] == 0


@pytest.mark.parametrize(
    ("ids", "lengths", "message"),
    [
        (np.zeros((1, 513), np.int32), None, "512 positions"),
        (np.full((1, 5), CONFIG.vocab_size, np.int32), None, "Wrong tokenizer"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused(model, ids, lengths, message) -> None:
    with pytest.raises(ShapeError, match=message):
        model.score(ids, lengths)


def with_head(name: str, directory: Path, labels: int = 1) -> Path:
    """A golden checkpoint with a score head in place of its vocabulary head."""
    source = copy_golden(name, directory)
    width = ModelConfig.from_hf(read_json(source / "config.json")).hidden_size

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors.pop("lm_head.weight", None)
        like = tensors["model.norm.weight"].dtype
        tensors["score.weight"] = np.random.default_rng(0).standard_normal((labels, width)).astype(like)

    edit_weights(source, change)
    return source


@pytest.mark.parametrize("name", ["qwen3_untied", "llama_tied"])
def test_a_classifier_is_written_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    source = with_head(name, tmp_path)
    model = ElasticRewardModel.from_pretrained(source, dtype="auto")
    model.save_pretrained(tmp_path / "out")
    assert same_bits(load_file(source / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))
    written = read_json(tmp_path / "out" / "config.json")
    assert written["architectures"][0].endswith("ForSequenceClassification")
    assert list(written["id2label"]) == ["0"]
    ids = random_ids((1, 40))
    again = ElasticRewardModel.from_pretrained(tmp_path / "out", dtype="auto")
    np.testing.assert_array_equal(again.score(ids), model.score(ids))


def test_a_language_model_gets_a_new_head_only_when_asked(tmp_path: Path) -> None:
    source = copy_golden("qwen3_untied", tmp_path)
    with pytest.raises(CheckpointError, match="missing    score.weight.*\n.*\n.*new_head_seed"):
        ElasticRewardModel.from_pretrained(source)
    first, second = (ElasticRewardModel.from_pretrained(source, new_head_seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.score_head[...], second.score_head[...])
    assert "lm_head.kernel" not in to_params(first.decoder)
    with pytest.raises(CheckpointError, match="has a score head"):
        ElasticRewardModel.from_pretrained(with_head("llama_tied", tmp_path), new_head_seed=0)


def test_a_head_of_several_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one label"):
        ElasticRewardModel.from_pretrained(with_head("llama_tied", tmp_path, labels=2))


def last_that_is_no_padding(ids: np.ndarray, pad: int | None) -> np.ndarray:
    """Where `transformers` reads the score of each row (`GenericForSequenceClassification.forward`)."""
    if pad is None:
        assert len(ids) == 1, "Cannot handle batch sizes > 1 if no padding token is defined."
        return np.array([ids.shape[1] - 1])
    return ((ids != pad) * np.arange(ids.shape[1])).argmax(-1)


@pytest.mark.parametrize("padded", [False, True], ids=["no padding", "padding is end of text"])
@pytest.mark.parametrize("template", [None, CHATML, LLAMA], ids=["no tokenizer", "ChatML", "Llama"])
def test_transformers_reads_padded_conversations_of_an_export_where_they_end(template, padded, tmp_path: Path) -> None:
    source = with_head("llama_tied", tmp_path)
    end, conversations = 2, [[1, 20, 30, 2], [1, 20, 30, 40, 50, 2]]
    if template:
        tokenizer = copy.deepcopy(chat_tokenizer(template))
        end = tokenizer.eos_token_id
        tokenizer.pad_token = tokenizer.eos_token if padded else None
        tokenizer.save_pretrained(source)
        edit_weights(source, lambda tensors: lengthen(tensors, len(tokenizer)))
        edit_json(source / "config.json", vocab_size=len(tokenizer))
        _, wholes = answered_texts(tokenizer, [{"role": "user", "content": "Who?"}], ["Ann.", "Ann keeps it."])
        conversations = [encode_chat(tokenizer, whole) for whole in wholes]
    edit_json(source / "config.json", eos_token_id=end, pad_token_id=end if padded else None)
    ElasticRewardModel.from_pretrained(source).save_pretrained(tmp_path / "out")
    pad = read_json(tmp_path / "out" / "config.json")["pad_token_id"]
    if template:
        assert load_tokenizer(tmp_path / "out").pad_token_id == pad
    lengths = np.array([len(ids) for ids in conversations])
    rows = np.array([ids + [pad] * (max(lengths) - len(ids)) for ids in conversations])
    np.testing.assert_array_equal(((rows != pad) * np.arange(max(lengths))).argmax(-1), lengths - 1)  # its rule


def lengthen(tensors: dict[str, np.ndarray], tokens: int) -> None:
    embedding = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = np.resize(embedding, (tokens, embedding.shape[1]))


def test_an_export_without_a_token_for_padding_says_so(tmp_path: Path, caplog) -> None:
    source = with_head("llama_tied", tmp_path)
    edit_json(source / "config.json", bos_token_id=2, eos_token_id=2, pad_token_id=2)
    ElasticRewardModel.from_pretrained(source).save_pretrained(tmp_path / "out")
    assert "For batches, add a padding token" in caplog.text
    assert read_json(tmp_path / "out" / "config.json")["pad_token_id"] is None


@pytest.mark.parametrize("seed", [None, 0])
def test_a_family_without_a_sequence_classifier_is_refused(seed: int | None) -> None:
    with pytest.raises(ConfigError, match="family granite, of which transformers has no sequence classifier"):
        ElasticRewardModel.from_pretrained(GOLDEN / "granite", new_head_seed=seed)

"""Every damaged or foreign checkpoint gives one clear error, and lists everything that is wrong with it."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN, WEIGHTS, copy_golden, edit_json, edit_weights
from safetensors.numpy import load_file, save_file

from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.weights import from_pretrained, save_pretrained

INDEX = "model.safetensors.index.json"


def refuse(source: Path | str, words: str, **arguments: object) -> str:
    with pytest.raises(CheckpointError, match=words) as caught:
        from_pretrained(source, **arguments)
    return str(caught.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint in several shards."""
    save_pretrained(from_pretrained(GOLDEN / "llama3"), tmp_path / "sharded", max_shard_bytes=30_000)
    return tmp_path / "sharded"


def shards(source: Path) -> list[Path]:
    return sorted(source.glob("*.safetensors"))


def edit_map(directory: Path, **changes: str) -> None:
    index = json.loads((directory / INDEX).read_text())
    edit_json(directory / INDEX, weight_map=index["weight_map"] | changes)


def test_every_tensor_problem_is_listed_at_once(tmp_path: Path) -> None:
    damaged = copy_golden("llama3", tmp_path)

    def damage(tensors: dict[str, np.ndarray]) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"], tensors["lm_head.weight"]
        tensors["model.layers.0.self_attn.k_proj.weight_scale"] = np.ones(1, np.float32)
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
        for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"):
            tensors[name] = np.ascontiguousarray(tensors[name].T)
        tensors["model.norm.weight"] = np.ones(31, np.float32)

    edit_weights(damaged, damage)
    message = refuse(damaged, "7 tensors do not fit")
    for line in (
        "missing    model.layers.1.mlp.up_proj.weight (our layers.mlp.up_proj.kernel), want shape [64, 32]",
        "missing    lm_head.weight (our lm_head.kernel), want shape [97, 32]: set tie_word_embeddings",
        "mis-shaped model.layers.0.mlp.down_proj.weight (our layers.mlp.down_proj.kernel), "
        "got [64, 32], want [32, 64]: transposed?",
        "mis-shaped model.layers.0.self_attn.o_proj.weight (our layers.attn.o_proj.kernel), "
        "got [64, 32], want [32, 64]: transposed?",
        "mis-shaped model.norm.weight (our norm.scale), got [31], want [32]",
        "unexpected model.layers.0.self_attn.k_proj.weight_scale, shape [1]",
        "unexpected model.layers.0.self_attn.q_proj.bias, shape [64]: the configuration has no such bias",
    ):
        assert line in message


def other_name(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("name", "change", "words", "arguments"),
    [
        ("qwen3_tied", other_name, "missing    model.embed_tokens.weight", {}),
        ("llama_tied", {"lm_head.weight": np.zeros((97, 32), np.float32)}, "lm_head.weight differs", {}),
        ("llama3", {"model.norm.weight": np.ones(32, np.int8)}, "norm.weight as I8; supported: F32, F16, BF16", {}),
        (
            *("llama3", {"model.norm.weight": np.full(32, 1e6, np.float32)}),
            *("model.norm.weight does not fit into float16", {"dtype": "float16"}),
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path: Path, name, change, words, arguments) -> None:
    damaged = copy_golden(name, tmp_path)
    edit_weights(damaged, change if callable(change) else lambda tensors: tensors.update(change))
    refuse(damaged, words, **arguments)


def test_layers_beyond_the_configuration_are_unexpected(tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    edit_json(source / "config.json", num_hidden_layers=1)
    assert "unexpected model.layers.1.self_attn.q_proj.weight" in refuse(source, "9 tensors")


@pytest.mark.parametrize("name", ["model_type", "retrieval_mode"])
def test_a_field_of_another_type_is_named(tmp_path: Path, name: str) -> None:
    damaged = copy_golden("official_qwen3", tmp_path)
    edit_json(damaged / "config.json", **{name: {"a": 1}})
    with pytest.raises(ConfigError, match=name):
        from_pretrained(damaged)


def test_old_rotary_buffers_are_ignored(tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(source, lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
    from_pretrained(source)


@pytest.mark.parametrize("keep", [0, 6, 200, -100])
def test_truncated_safetensors(keep: int, tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    content = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(content[:keep])
    refuse(source, "cannot be read as safetensors.*truncated or edited")


@pytest.mark.parametrize("where", [0, 7, 9])
def test_edited_safetensors_header(where: int, tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    content = bytearray((source / WEIGHTS).read_bytes())
    content[where] ^= 0x55
    (source / WEIGHTS).write_bytes(content)
    refuse(source, "cannot be read as safetensors")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_pickles_are_never_loaded(name: str, tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    (source / WEIGHTS).rename(source / name)
    refuse(source, f"{name}, a pickle, which can run code")
    refuse(source / name, "is a pickle, which can run code")


def test_an_adapter_is_refused_alone_and_beside_its_base_model(tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refuse(source, "holds an adapter .*merge_and_unload")
    (source / "config.json").unlink()
    refuse(source, "holds an adapter .*merge_and_unload")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "does not exist; want a Hugging Face directory")
    refuse(tmp_path, "config.json does not exist")
    refuse(Path(__file__), "is a single file")
    (tmp_path / "config.json").write_text("{ not json")
    refuse(tmp_path, "not readable JSON")
    (tmp_path / "config.json").write_text("[1]")
    refuse(tmp_path, "want a JSON object")
    source = copy_golden("llama3", tmp_path)
    (source / WEIGHTS).unlink()
    refuse(source, "has neither model.safetensors nor model.safetensors.index.json")


def test_hub_id_without_a_hub() -> None:
    refuse("nobody/no-such-model", "cannot be fetched or found in the local cache")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/outside.safetensors", "a/b.safetensors", "model.bin", "x\0.safetensors", ""],
)
def test_shard_names_that_lead_elsewhere(name: str, source: Path) -> None:
    edit_map(source, **{"model.norm.weight": name})
    refuse(source, "bare \\*.safetensors file name")


def test_shard_that_is_a_link_to_the_outside(source: Path, tmp_path: Path) -> None:
    shards(source)[0].rename(tmp_path / "outside.safetensors")
    (source / "model-00001-of-00003.safetensors").symlink_to(tmp_path / "outside.safetensors")
    refuse(source, "outside the checkpoint")


def test_index_against_its_shards(source: Path) -> None:
    edit_map(source, **{"model.extra.weight": shards(source)[0].name})
    refuse(source, "model.extra.weight is in the index but in no shard")

    index = json.loads((source / INDEX).read_text())
    kept = {k: v for k, v in index["weight_map"].items() if k not in ("model.extra.weight", "model.norm.weight")}
    edit_json(source / INDEX, weight_map=kept)
    refuse(source, "model.norm.weight is in a shard but not in the index")

    edit_json(source / INDEX, metadata={}, weight_map={"a": 3})
    refuse(source, "no weight_map")


def test_tensor_in_two_shards(source: Path) -> None:
    first, second = shards(source)[:2]
    save_file({**load_file(second), **dict(list(load_file(first).items())[:1])}, second)
    refuse(source, "which another shard holds too")


def test_missing_and_stray_shards(source: Path) -> None:
    save_file({"model.norm.weight": np.zeros(3, np.float32)}, source / "model-00099-of-00099.safetensors")
    from_pretrained(source)
    shards(source)[-2].unlink()
    refuse(source, "is missing. Is the download complete")


def test_unknown_dtype() -> None:
    with pytest.raises(ConfigError, match="'int8'; want one of bfloat16"):
        from_pretrained(GOLDEN / "llama3", dtype="int8")
    for dtype in (np.int8, None, object()):
        with pytest.raises(ConfigError, match="unknown dtype .*; want one of bfloat16"):
            from_pretrained(GOLDEN / "llama3", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", np.float32, jnp.float32, np.dtype("float32")])
def test_dtypes_are_taken_as_numpy_and_jax_write_them(dtype: object) -> None:
    assert from_pretrained(GOLDEN / "llama3", dtype=dtype).head_kernel().dtype == np.float32

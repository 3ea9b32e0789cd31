"""What is read is written back bit for bit, in every format."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN, WEIGHTS, copy_golden, edit_json, edit_weights, same_bits
from safetensors.numpy import load_file

from elastic_jax.errors import ConfigError
from elastic_jax.files import read_json
from elastic_jax.model import to_params
from elastic_jax.weights import from_pretrained, save_pretrained
from elastic_jax.weights.hf import open_directory

NAMES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
OFFICIAL = GOLDEN / "official_qwen3"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "official_qwen3"])
def test_untouched_weights_are_written_bit_for_bit(name: str, tmp_path: Path) -> None:
    save_pretrained(from_pretrained(GOLDEN / name), tmp_path / "out")
    assert same_bits(load_file(GOLDEN / name / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_other_dtypes_are_written_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    save_pretrained(from_pretrained(GOLDEN / "qwen3_untied", dtype=dtype), tmp_path / "first")
    again = from_pretrained(tmp_path / "first", dtype="auto")
    assert to_params(again)["embed.embedding"].dtype == dtype
    save_pretrained(again, tmp_path / "second")
    assert same_bits(load_file(tmp_path / "first" / WEIGHTS), load_file(tmp_path / "second" / WEIGHTS))
    assert json.loads((tmp_path / "second" / "config.json").read_text())["dtype"] == dtype


def test_auto_dtype_loses_nothing_when_tensors_differ(tmp_path: Path) -> None:
    mixed = copy_golden("llama3", tmp_path)
    norm = np.float32([1.0 + 2**-20] * 32)
    edit_weights(mixed, lambda tensors: tensors.update({"model.norm.weight": norm}))
    np.testing.assert_array_equal(to_params(from_pretrained(mixed, dtype="auto"))["norm.scale"], norm)


def test_elastic_format_is_bit_identical(tmp_path: Path) -> None:
    save_pretrained(from_pretrained(OFFICIAL, dtype="auto"), tmp_path / "out", format="elastic")
    assert same_bits(load_file(OFFICIAL / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["PawQwen3ForCausalLM"]


def test_elastic_format_of_a_plain_model_has_every_official_tensor(tmp_path: Path) -> None:
    model = from_pretrained(GOLDEN / "qwen3_tied")
    model.fresh_routers = False
    save_pretrained(model, tmp_path / "out", format="elastic")
    written = load_file(tmp_path / "out" / WEIGHTS)
    official = load_file(OFFICIAL / WEIGHTS)
    assert written.keys() == official.keys()
    np.testing.assert_array_equal(written["model.layers.0.self_attn.attn_mask_log_alphas"], [4.0, 4.0])
    again = from_pretrained(tmp_path / "out")
    assert again.config.router == model.config.router
    for path, array in to_params(model).items():
        np.testing.assert_array_equal(array, to_params(again)[path], path)


def test_shards_are_bounded_and_read_back(tmp_path: Path) -> None:
    save_pretrained(from_pretrained(GOLDEN / "llama3"), tmp_path / "out", max_shard_bytes=20_000)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2 and all(shard.name == f"model-{i:05d}-of-{len(shards):05d}.safetensors"
                                   for i, shard in enumerate(shards, 1))  # fmt: skip
    parts = [load_file(shard) for shard in shards]
    assert all(sum(x.nbytes for x in part.values()) <= 20_000 for part in parts)
    assert same_bits(load_file(GOLDEN / "llama3" / WEIGHTS), {k: v for part in parts for k, v in part.items()})
    save_pretrained(from_pretrained(tmp_path / "out"), tmp_path / "whole")
    assert same_bits(load_file(GOLDEN / "llama3" / WEIGHTS), load_file(tmp_path / "whole" / WEIGHTS))


def test_tied_head_is_not_written_and_may_be_stored_twice(tmp_path: Path) -> None:
    twice = copy_golden("qwen3_tied", tmp_path)
    edit_weights(twice, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    save_pretrained(from_pretrained(twice), tmp_path / "out")
    assert same_bits(load_file(GOLDEN / "qwen3_tied" / WEIGHTS), load_file(tmp_path / "out" / WEIGHTS))


def test_tokenizer_and_generation_files_go_along(tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (source / name).write_text(f'{{"file": "{name}"}}')
    (source / "unrelated.txt").write_text("not copied")
    save_pretrained(from_pretrained(source), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out" / "unrelated.txt").exists()


def test_generation_defaults_are_written_from_the_token_ids(tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    edit_json(source / "config.json", eos_token_id=[2, 5])
    save_pretrained(from_pretrained(source), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written == {"bos_token_id": 1, "eos_token_id": [2, 5]}


def test_end_tokens_of_the_generation_defaults_are_taken(tmp_path: Path) -> None:
    source = copy_golden("llama3", tmp_path)
    file = source / "generation_config.json"
    for ends in ([2, 5], 7, None):
        file.write_text(json.dumps({"eos_token_id": ends, "do_sample": True}), encoding="utf-8-sig")
        config = read_json(source / "config.json")
        want = config["eos_token_id"] if ends is None else ends
        assert open_directory(source).config.hf_extra["eos_token_id"] == want
    for ends in ("</s>", [2, "5"], -1, True):
        file.write_text(json.dumps({"eos_token_id": ends}))
        with pytest.raises(ConfigError, match="want the number of a token"):
            open_directory(source)


def test_fresh_routers_are_the_same_every_time() -> None:
    first, second = (to_params(from_pretrained(GOLDEN / "llama3")) for _ in range(2))
    routers = [path for path in first if path.startswith("layers.router.")]
    assert len(routers) == 10
    for path in routers:
        assert first[path].dtype == jnp.float32
        np.testing.assert_array_equal(first[path], second[path])
        if path.endswith("bias"):
            assert not np.any(first[path])
    assert np.std(first["layers.router.task.fc1.kernel"]) == pytest.approx(0.02, rel=0.1)


def test_pattern_is_imposed() -> None:
    assert from_pretrained(OFFICIAL, pattern="xa-ssa").config.router.pattern == "xa-ssa"

"""Router-only directories: a small file beside a base model."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import GOLDEN, edit_json

from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.generation import generate
from elastic_jax.inspection import route_prompt
from elastic_jax.model import require_routers, to_params
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.weights import from_pretrained, save_pretrained
from eval.harness.backends.local import with_router_settings

OFFICIAL = GOLDEN / "official_qwen3"


@pytest.fixture
def routers(tmp_path: Path) -> Path:
    save_pretrained(from_pretrained(OFFICIAL), tmp_path / "routers", format="router")
    return tmp_path / "routers"


def test_round_trip_onto_the_base_model(routers: Path, tmp_path: Path) -> None:
    official = from_pretrained(OFFICIAL)
    save_pretrained(official, tmp_path / "base")
    elastic = from_pretrained(tmp_path / "base", router=routers)
    assert elastic.config.router == official.config.router
    for path, array in to_params(official).items():
        np.testing.assert_array_equal(array, to_params(elastic)[path], path)


def test_replaces_routers_that_the_source_has(routers: Path, tmp_path: Path) -> None:
    other = from_pretrained(GOLDEN / "qwen3_tied")
    with pytest.raises(ConfigError, match="format elastic needs trained routers"):
        save_pretrained(other, tmp_path / "other", format="elastic")
    other.fresh_routers = False
    save_pretrained(other, tmp_path / "other", format="elastic")
    with pytest.raises(CheckpointError, match="num_heads is 4, the base model has 8"):
        from_pretrained(tmp_path / "other", router=routers)
    replaced = from_pretrained(OFFICIAL, router=routers)
    assert replaced.config.router == from_pretrained(OFFICIAL).config.router


def test_a_model_without_routers_is_told_to_have_learnt_none(
    routers: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_pretrained(from_pretrained(OFFICIAL), tmp_path / "base")
    from_pretrained(tmp_path / "base", router=routers)
    assert caplog.text == ""
    model, ids = from_pretrained(tmp_path / "base"), jnp.ones((1, 40), jnp.int32)
    assert "base has no routers" in caplog.text and 'routing="full"' in caplog.text
    assert (generate(model, ids, max_new_tokens=1).routing.mode == 0).all()
    reward = ElasticRewardModel.from_pretrained(tmp_path / "base", new_head_seed=0)
    for refused in (model, reward.decoder, with_router_settings(model, local_blocks=1)):
        with pytest.raises(ConfigError, match="inspect needs trained routers; .*base has none"):
            require_routers(refused, "inspect")
    with pytest.raises(ConfigError, match="needs trained routers"):
        route_prompt(model, "a", [1, 2])
    model.fresh_routers = False
    assert np.isclose(model(ids, router_bias=-9.0).routing.msr(), 1.0), "the routers decide where asked to"
    require_routers(model, "inspect")


def test_is_small_and_names_its_base(routers: Path) -> None:
    assert sorted(p.name for p in routers.iterdir()) == ["router.safetensors", "router_config.json"]
    written = json.loads((routers / "router_config.json").read_text())
    assert written["base"]["name"] == "official_qwen3"
    assert written["base"]["head_dim"] == 16 and written["router"]["local_blocks"] == 2


def test_is_no_full_model(routers: Path) -> None:
    with pytest.raises(CheckpointError, match="routers only .no embed, layers.attn, layers.mlp, norm.*router="):
        from_pretrained(routers)


def test_other_base_model(routers: Path) -> None:
    with pytest.raises(CheckpointError, match="made for another model: family is 'qwen3', the base model has 'llama'"):
        from_pretrained(GOLDEN / "llama3", router=routers)


def test_damaged_router_directory(routers: Path, tmp_path: Path) -> None:
    edit_json(routers / "router_config.json", router={"width": 4, "colour": 1})
    with pytest.raises(ConfigError, match="unknown router fields .'colour'"):
        from_pretrained(OFFICIAL, router=routers)
    edit_json(routers / "router_config.json", router={"width": 2})
    with pytest.raises(CheckpointError, match="mis-shaped model.layers.0.self_attn.mask_allocator"):
        from_pretrained(OFFICIAL, router=routers)
    (routers / "router.safetensors").unlink()
    with pytest.raises(CheckpointError, match="router.safetensors is missing"):
        from_pretrained(OFFICIAL, router=routers)
    edit_json(routers / "router_config.json", version=2)
    with pytest.raises(CheckpointError, match="version 2; want"):
        from_pretrained(OFFICIAL, router=routers)
    with pytest.raises(CheckpointError, match="router_config.json does not exist"):
        from_pretrained(OFFICIAL, router=tmp_path / "nowhere")

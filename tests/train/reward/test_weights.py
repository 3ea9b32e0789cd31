"""What learns, in which number format, and the plain model that comes out."""

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.model import from_params, to_params
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.weights.names import SCORE
from train.reward.config import LoraConfig
from train.reward.weights import assemble


@pytest.fixture(scope="module")
def reward_model() -> ElasticRewardModel:
    half = {path: x if ".router." in path else x.astype(jnp.bfloat16) for path, x in to_params(tiny_model()).items()}
    decoder = from_params(CONFIG, half)
    return ElasticRewardModel(decoder, jnp.ones((CONFIG.hidden_size, 1), jnp.bfloat16), CONFIG)


def test_every_weight_but_the_routers_learns_in_float32(reward_model) -> None:
    assembly, params, frozen = assemble(reward_model, LoraConfig(), block_size=8, seed=0)
    assert params.keys() | frozen.keys() == to_params(reward_model.decoder).keys() | {SCORE}
    assert all(path.startswith("layers.router.") for path in frozen)
    assert {x.dtype for x in params.values()} == {np.dtype("float32")}
    assert assembly.config.router.block_size == 8
    merged = assembly.merged(params, frozen)
    for path, x in to_params(reward_model.decoder).items():
        assert merged[path].dtype == x.dtype, path
        np.testing.assert_array_equal(np.asarray(merged[path], np.float32), np.asarray(x, np.float32))


def test_adapters_of_chosen_maps_learn_and_merge(reward_model) -> None:
    lora = LoraConfig(rank=2, alpha=4, targets=("attn.o_proj", "mlp.up_proj"))
    assembly, params, frozen = assemble(reward_model, lora, block_size=None, seed=0)
    assert len(params) == 5 and frozen.keys() == to_params(reward_model.decoder).keys()
    moved = {path: x + 1 if path.endswith("lora_up") else x for path, x in params.items()}
    merged = assembly.merged(moved, frozen)
    changed = {path for path, x in merged.items() if not np.array_equal(x, frozen[path])}
    assert changed == {"layers.attn.o_proj.kernel", "layers.mlp.up_proj.kernel"}
    ids = random_ids((1, 16))
    got = from_params(CONFIG, merged)(ids, routing="full").logits
    want = assembly.decoder(moved, frozen)(ids, routing="full").logits
    np.testing.assert_allclose(got, want, atol=0.1 * float(jnp.abs(want).max()))

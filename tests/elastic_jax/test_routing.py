import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.errors import ShapeError
from elastic_jax.routing import HeadMode, Routing, modes_from, streaming_skip_ratio

CONFIG = ModelConfig("llama", 8, 8, 8, 2, 2, 2, 4, 8192)


def counted_skip_ratio(length, block, sink, local):
    query, key = np.arange(length)[:, None], np.arange(length)[None]
    causal = key <= query
    kept = causal & ((key // block < sink) | (key // block > query // block - local))
    return 1 - kept.sum() / causal.sum()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 47, 48, 49, 64, 200])
def test_skip_ratio_counts_the_pairs_of_the_mask(length):
    config = ModelConfig("llama", 8, 8, 8, 2, 2, 2, 4, 8192, router=RouterConfig(block_size=16, local_blocks=2))
    assert float(streaming_skip_ratio(length, config)) == pytest.approx(counted_skip_ratio(length, 16, 1, 2), abs=1e-6)


@pytest.mark.parametrize(("length", "share"), [(4096, 0.234), (8192, 0.551), (65_536, 0.937), (262_144, 0.984)])
def test_skip_ratio_of_the_published_window(length, share):
    assert float(streaming_skip_ratio(length, CONFIG)) == pytest.approx(share, abs=6e-4)


def test_msr_and_esr_average_over_layers_and_heads():
    mode = jnp.array([[[0, 1]], [[1, 1]]], jnp.int8)
    routing = Routing(mode)
    assert float(routing.msr()[0]) == 0.75
    ratio = float(streaming_skip_ratio(8192, CONFIG))
    assert float(routing.esr(jnp.array([8192]), CONFIG)[0]) == pytest.approx(0.75 * ratio)
    assert float(routing.esr(jnp.array([8192]), CONFIG, last_layer=True)[0]) == pytest.approx(ratio)
    with pytest.raises(ShapeError, match="one per sequence"):
        routing.esr(jnp.array([1, 2]), CONFIG)


def test_modes_from_names_arrays_and_records():
    shape = (2, 1, 2)
    assert (modes_from("full", shape) == HeadMode.FULL).all()
    assert (modes_from("sparse", shape) == HeadMode.SPARSE).all()
    np.testing.assert_array_equal(modes_from(Routing(jnp.ones(shape, jnp.int8)), shape), np.ones(shape))
    with pytest.raises(ShapeError, match="dense"):
        modes_from("dense", shape)
    with pytest.raises(ShapeError, match=r"want \(2, 1, 2\)"):
        modes_from(jnp.zeros((2, 2)), shape)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.config import HeadMode, ModelConfig, RouterConfig
from elastic_jax.errors import ShapeError
from elastic_jax.layout import make_layout
from elastic_jax.routing import Routing, gates_from, skipped_share, streaming_skip_ratio, to_modes

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


@pytest.mark.parametrize("pattern", ["fa-xa", "xa-ssa"])
def test_skipped_share_counts_the_pairs_of_the_kept_blocks(pattern):
    router = RouterConfig(block_size=16, local_blocks=1, pattern=pattern)
    config = ModelConfig("llama", 8, 8, 8, 2, 4, 2, 4, 8192, router=router)
    segments = np.r_[[1] * 40, [0] * 8, [2] * 50]
    mask = np.random.default_rng(0).random((1, 4, 7, 7)) < 0.5
    mask[:, :, 3:, :3] = False
    mask |= np.eye(7, dtype=bool)
    gates = np.array([[[1, 0], [0, 1]]])

    @jax.jit
    def share(gates, mask):
        layout = make_layout((1, 98), segment_ids=segments[None], num_segments=2, block_size=16)
        return skipped_share(gates, mask, layout, config)

    got = share(gates.astype(np.float32), mask)
    token = np.arange(98)
    for segment, head in np.ndindex(2, 2):
        inside = np.flatnonzero(segments == segment + 1)
        causal = token[inside, None] >= token[inside]
        blocks = inside // 16
        is_xa = gates[0, segment, head] == (pattern == "xa-ssa")
        if is_xa:
            kept = mask[0, 2 * head : 2 * head + 2][:, blocks[:, None], blocks].mean(0)
        elif gates[0, segment, head]:
            kept = np.ones(causal.shape)
        else:
            kept = (blocks == blocks[0]) | (blocks[:, None] == blocks)
        assert float(got[0, segment, head]) == pytest.approx(1 - (kept * causal).sum() / causal.sum(), abs=1e-6)


def test_gates_come_from_words_modes_and_records():
    modes = jnp.array([[[0, 1]], [[1, 1]]], jnp.int8)
    assert gates_from(None, CONFIG, 1) is None
    for routing, wanted in (("full", modes * 0), ("sparse", modes * 0 + 1), (Routing(modes), modes), (modes, modes)):
        gates = gates_from(routing, CONFIG, 1)
        np.testing.assert_array_equal(gates.z, wanted == HeadMode.FULL)
        np.testing.assert_array_equal(to_modes(gates.z), wanted)
        assert gates_from(gates, CONFIG, 1) is gates
    with pytest.raises(ShapeError, match="dense"):
        gates_from("dense", CONFIG, 1)
    with pytest.raises(ShapeError, match=r"want \(2, 3, 2\)"):
        gates_from(modes, CONFIG, 3)
    for full in (modes == 0, modes.astype(jnp.float32) + 0.7):
        with pytest.raises(ShapeError, match="0 is full, 1 is sparse"):
            gates_from(full, CONFIG, 1)

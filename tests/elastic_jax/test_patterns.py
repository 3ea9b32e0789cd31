"""The patterns whose heads choose blocks by content: fa-xa and xa-ssa."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, random_ids, tiny_model

from elastic_jax.errors import ConfigError, ShapeError
from elastic_jax.generation import make_cache
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.router import SampledGates
from elastic_jax.routing import Routing


def model_config(pattern, threshold=0.6):
    router = dataclasses.replace(CONFIG.router, pattern=pattern, xa_threshold=threshold, xa_stride=4)
    return dataclasses.replace(CONFIG, router=router)


def model_with(pattern, threshold=0.6):
    return tiny_model(router=model_config(pattern, threshold).router)


@nnx.jit
def run(model, ids, modes, segment_ids=None):
    return model(ids, routing=modes, segment_ids=segment_ids)


MIXED = jnp.array([[[0, 1]], [[1, 0]]])


@pytest.mark.parametrize("pattern", ["fa-xa", "xa-ssa"])
def test_packed_sequences_equal_the_sequences_alone(pattern):
    model, ids = model_with(pattern), random_ids((1, 112))
    segments = jnp.asarray(np.r_[[1] * 20, [0] * 12, [2] * 80][None])
    packed = run(model, ids, jnp.broadcast_to(MIXED[:, :, None], (2, 1, 7, 2)), segments)
    alone = run(model, ids[:, 32:], MIXED)
    np.testing.assert_allclose(packed.logits[0, 32:], alone.logits[0], atol=2e-5)
    np.testing.assert_allclose(packed.routing.skipped[:, 0, 1], alone.routing.skipped[:, 0], atol=1e-6)
    esr = alone.routing.esr(jnp.array([80]), model.config)
    assert 0 < float(esr[0]) < 1
    skips, sparse = np.asarray(alone.routing.skipped[:, 0]), np.asarray(MIXED[:, 0]) == 1
    assert (skips[sparse] > 0.05).all()
    assert (skips[~sparse] > 0.05).all() if pattern == "xa-ssa" else (skips[~sparse] == 0).all()


def test_heads_that_keep_every_block_equal_full_attention():
    ids, chosen = random_ids((1, 80)), jnp.ones_like(MIXED)
    full, keen = (run(model_with("fa-xa", 1.0), ids, modes) for modes in (jnp.zeros_like(MIXED), chosen))
    choosy = run(model_with("fa-xa"), ids, chosen)
    np.testing.assert_allclose(keen.logits, full.logits, atol=1e-3)
    assert np.abs(choosy.logits - full.logits).max() > 1e-2


@pytest.mark.parametrize("pattern", ["fa-xa", pytest.param("xa-ssa", marks=pytest.mark.slow)])
def test_sampled_gates_reach_every_router(pattern):
    model, ids = model_with(pattern), random_ids((1, 100))
    segments = jnp.asarray(np.r_[[1] * 60, [0] * 4, [2] * 36][None])
    graph, routers, rest = nnx.split(model, lambda path, _: "router" in path, ...)

    @jax.jit
    @jax.grad
    def slopes(routers):
        gates = SampledGates(jax.random.key(0), 1.0)
        out = nnx.merge(graph, routers, rest).hidden(ids, segment_ids=segments, gates=gates, remat=True)
        return (out.hidden_BTD**2 * jnp.arange(32.0)[None, None]).sum()

    for leaf in jax.tree.leaves(slopes(routers)):
        assert (np.abs(leaf).reshape(len(leaf), -1).max(1) > 0).all()
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("pattern, same", [("fa-ssa", False), ("fa-xa", True), ("xa-ssa", False)])
def test_heads_that_choose_blocks_decode_over_the_whole_cache(pattern, same):
    modes = np.array([[[1, 0]], [[1, 1]]], np.int8)
    rng = np.random.default_rng(0)
    k, v, q = (rng.normal(size=shape).astype(np.float32) for shape in (2 * [(2, 1, 80, 2, 8)] + [(1, 1, 4, 8)]))

    @jax.jit
    def attend(modes):
        return make_cache(CacheConfig(), model_config(pattern), (k, v), np.array([70]), modes, 4).attend(1, q)

    assert np.array_equal(attend(modes), attend(np.zeros_like(modes))) == same


def test_a_routing_without_its_blocks_has_no_esr():
    with pytest.raises(ShapeError, match="forward pass"):
        Routing(jnp.ones((2, 1, 2), jnp.int8)).esr(jnp.array([80]), model_config("fa-xa"))


@pytest.mark.parametrize("changes, words", [({"xa_threshold": 0.0}, "xa_threshold"), ({"xa_stride": 5}, "xa_stride")])
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        dataclasses.replace(CONFIG.router, pattern="fa-xa", **changes)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, Case, assert_close, make_inputs, random_block_masks
from tpu_tools import interpreted, quick_jit

from pallas_kernels import hybrid_attention

NAMED = {case.name: case for case in CASES}
QUICK = {"padded", "window in packed rows"}
PARAMETERS = [pytest.param(c, id=c.name, marks=[] if c.name in QUICK else [pytest.mark.slow]) for c in CASES]


def value_and_grads(inputs, impl, **masks):
    def run(q, k, v):
        out, pull = jax.vjp(lambda *a: hybrid_attention(*a, inputs.mode, **inputs.options, **masks, impl=impl), q, k, v)
        return out, *pull(inputs.d_out)

    return jax.block_until_ready(quick_jit(run)(inputs.q, inputs.k, inputs.v))


def compare(inputs, widest_tile=2, tolerance=1e-5, **masks):
    with interpreted(widest_tile):
        got = value_and_grads(inputs, "tpu", **masks)
    wanted = value_and_grads(inputs, "reference", **masks)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, tolerance, name)


@pytest.mark.parametrize("case", PARAMETERS)
def test_equals_the_dense_reference(case):
    compare(make_inputs(case))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["many blocks", "last queries"])
def test_equals_the_dense_reference_with_wide_tiles(name):
    compare(make_inputs(NAMED[name]), widest_tile=8)


@pytest.mark.slow
def test_bfloat16_inputs_accumulate_in_float32():
    compare(make_inputs(NAMED["many blocks"], jnp.bfloat16), tolerance=2e-2)


@pytest.mark.parametrize("heads", ["sparse", pytest.param("both", marks=pytest.mark.slow)])
def test_block_masks_replace_the_patterns_of_their_heads(heads):
    """Each query head has its own blocks; some query blocks see nothing at all."""
    inputs = make_inputs(NAMED["many blocks"])
    (batch, tokens, query_heads, _), rng = inputs.q.shape, np.random.default_rng(1)
    shape = (batch, query_heads, -(-tokens // 16), -(-tokens // 16))
    masks = [jnp.asarray(rng.random(shape) < p) for p in (0.3, 0.6)]
    masks[0] = masks[0].at[:, :, 3].set(False)
    names = ("block_mask", "full_block_mask") if heads == "both" else ("block_mask",)
    compare(inputs, **dict(zip(names, masks, strict=False)))


@pytest.mark.parametrize(
    "case", [Case("short", 40, groups=2, lengths=(38,)), pytest.param(NAMED["packed"], marks=pytest.mark.slow)]
)
def test_log_sum_exp_and_its_gradients(case):
    """Some queries see nothing: their log-sum-exp is -inf, and whatever its cotangent holds does no harm."""
    inputs = make_inputs(case)
    d_lse = jnp.cos(jnp.arange(inputs.q[..., 0].size, dtype=jnp.float32)).reshape(inputs.q.shape[:3])
    masks = dict(zip(("block_mask", "full_block_mask"), random_block_masks(case), strict=True))

    def run(impl):
        def both(q, k, v):
            return hybrid_attention(q, k, v, inputs.mode, **inputs.options, **masks, return_lse=True, impl=impl)

        def values(q, k, v):
            (out, lse), pull = jax.vjp(both, q, k, v)
            return out, lse, *pull((inputs.d_out, jnp.where(jnp.isneginf(lse), jnp.nan, d_lse)))

        return jax.block_until_ready(quick_jit(values)(inputs.q, inputs.k, inputs.v))

    with interpreted(2):
        got = run("tpu")
    dense = hybrid_attention(
        inputs.q, inputs.k, inputs.v, inputs.mode, **inputs.options, **masks, return_lse=True, impl="reference"
    )
    np.testing.assert_array_equal(jnp.isneginf(got[1]), jnp.isneginf(dense[1]))
    assert bool(jnp.isneginf(got[1]).any()) and got[1].dtype == jnp.float32
    for name, a, b in zip(("out", "lse", "dq", "dk", "dv"), got, run("xla"), strict=True):
        assert_close(jnp.where(jnp.isneginf(a), 0, a), jnp.where(jnp.isneginf(b), 0, b), 1e-5, name)


@pytest.mark.parametrize("cores", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_neither_copies_nor_cores_race(cores, capfd):
    """Short sweeps, where consecutive query blocks touch the same gradients; an odd number of heads and of blocks."""
    inputs = make_inputs(Case("short", 40, kv_heads=3, lengths=(38,)))
    with interpreted(2, cores=cores, detect_races=True):
        got = value_and_grads(inputs, "tpu")
    assert "RACE DETECTED" not in capfd.readouterr().out
    for a, b in zip(got, value_and_grads(inputs, "reference"), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.slow
def test_padding_may_hold_anything():
    inputs = make_inputs(NAMED["padded"])
    exists = jnp.arange(inputs.k.shape[1]) < inputs.options["lengths"][:, None]

    def run(value):
        q, k, v = (jnp.where(exists[:, :, None, None], x, value) for x in (inputs.q, inputs.k, inputs.v))
        return hybrid_attention(q, k, v, inputs.mode, **inputs.options, impl="tpu")

    with interpreted(2):
        clean, dirty = quick_jit(run)(0.0), quick_jit(run)(jnp.nan)
    assert bool((clean == dirty).all())

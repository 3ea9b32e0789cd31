from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from attention_cases import CASES, Case, assert_close, make_inputs, random_block_masks
from triton_interpreter import interpreted

from pallas_kernels import hybrid_attention

NAMED = {case.name: case for case in CASES}
SHORT = Case("last queries, short", 40, queries=25, kv_heads=2, local=1, lengths=(37,))
PACKED = Case("window in packed rows, short", 80, kv_heads=2, window=20, segments=((20, 40),))
QUICK = (NAMED["one token"], NAMED["above a block"], SHORT, PACKED)
SMALL_ENOUGH = [case for case in CASES if case.keys <= 700]


@pytest.fixture(autouse=True)
def on_the_interpreter(monkeypatch):
    with interpreted(monkeypatch):
        yield


def value_and_grads(inputs, impl, **options):
    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(
            lambda *a: hybrid_attention(*a, inputs.mode, **inputs.options, **options, impl=impl), q, k, v
        )
        return out, *pull(inputs.d_out)

    return jax.block_until_ready(run(inputs.q, inputs.k, inputs.v))


def assert_equals_reference(inputs, tolerance, **options):
    got, wanted = (value_and_grads(inputs, impl, **options) for impl in ("triton", "reference"))
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, tolerance, name)


@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=case.name) for case in QUICK),
        *(pytest.param(c, id=c.name, marks=pytest.mark.slow) for c in SMALL_ENOUGH if c not in QUICK),
    ],
)
def test_equals_the_dense_reference(case):
    assert_equals_reference(make_inputs(case), 1e-5)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 2e-2), (jnp.float16, 3e-3)])
def test_16_bit_operands_accumulate_in_float32(dtype, tolerance):
    assert_equals_reference(make_inputs(SHORT, dtype), tolerance)


@pytest.mark.parametrize("head_dim", [96, pytest.param(256, marks=pytest.mark.slow)])
def test_wide_heads(head_dim):
    assert_equals_reference(make_inputs(replace(SHORT, head_dim=head_dim)), 1e-5)


@pytest.mark.parametrize(
    "case, masked",
    [
        (SHORT, "both"),
        pytest.param(SHORT, "sparse", marks=pytest.mark.slow),
        pytest.param(SHORT, "full", marks=pytest.mark.slow),
        pytest.param(NAMED["packed"], "both", marks=pytest.mark.slow),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_block_masks(case, masked):
    inputs = make_inputs(case)
    mode = inputs.mode.at[:].set(jnp.arange(case.kv_heads, dtype=jnp.int8) % 2)
    options = {"sparse": ("block_mask",), "full": ("full_block_mask",), "both": ("block_mask", "full_block_mask")}
    masks = dict(zip(options[masked], random_block_masks(case), strict=False))
    assert_equals_reference(replace(inputs, mode=mode), 1e-5, **masks)


@pytest.mark.parametrize("listed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_log_sum_exp_and_its_gradient(listed):
    """Where a query sees nothing it is -inf, and takes no gradient."""
    inputs = make_inputs(SHORT)
    names = ("block_mask", "full_block_mask") if listed else ()
    masks = dict(zip(names, random_block_masks(SHORT), strict=False))
    d_lse = jnp.sin(jnp.arange(inputs.q[..., 0].size, dtype=jnp.float32)).reshape(inputs.q.shape[:3])

    def run(impl):
        @jax.jit
        def call(q, k, v):
            def both(*operands):
                return hybrid_attention(*operands, inputs.mode, **inputs.options, **masks, return_lse=True, impl=impl)

            (out, lse), pull = jax.vjp(both, q, k, v)
            return out, jnp.isfinite(lse), jnp.where(jnp.isfinite(lse), lse, 0), *pull((inputs.d_out, d_lse))

        return jax.block_until_ready(call(inputs.q, inputs.k, inputs.v))

    got, wanted = run("triton"), run("reference")
    assert not bool(got[1].all()) and bool((got[1] == wanted[1]).all())
    for name, a, b in zip(("out", "seen", "lse", "dq", "dk", "dv"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, name)


def test_padding_may_hold_anything():
    inputs = make_inputs(SHORT)
    exists = jnp.arange(inputs.k.shape[1]) < inputs.options["lengths"][:, None]

    @jax.jit
    def run(value):
        q, k, v, d_out = (
            jnp.where(exists[:, -x.shape[1] :, None, None], x, value)
            for x in (inputs.q, inputs.k, inputs.v, inputs.d_out)
        )
        out, pull = jax.vjp(lambda *a: hybrid_attention(*a, inputs.mode, **inputs.options, impl="triton"), q, k, v)
        return out, *pull(d_out)

    for clean, dirty in zip(run(0.0), run(jnp.nan), strict=True):
        assert bool((clean == dirty).all())
        assert bool((jnp.where(exists[:, -clean.shape[1] :, None, None], 0, clean) == 0).all())


def test_blocks_that_no_tile_divides_are_refused():
    inputs = make_inputs(NAMED["one token"])
    with pytest.raises(ValueError, match="block_size=24 on a GPU; wanted a multiple of 16"):
        hybrid_attention(inputs.q, inputs.k, inputs.v, inputs.mode, block_size=24, impl="triton")

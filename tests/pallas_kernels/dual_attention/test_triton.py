import jax
import jax.numpy as jnp
import pytest
from attention_cases import CASES, Case, assert_close, make_inputs, random_block_masks
from triton_interpreter import interpreted

from pallas_kernels import dual_attention, routed_attention

NAMED = {case.name: case for case in CASES}
SMALL_ENOUGH = [case for case in CASES if case.keys <= 700]
SHORT = Case("last queries, short", 70, queries=55, kv_heads=2, local=2, lengths=(67,))


@pytest.fixture(autouse=True)
def on_the_interpreter(monkeypatch):
    with interpreted(monkeypatch):
        yield


def routed_value_and_grads(inputs, impl, **masks):
    @jax.jit
    def run(q, k, v, z):
        out, pull = jax.vjp(lambda *a: routed_attention(*a, **inputs.options, **masks, impl=impl), q, k, v, z)
        return out, *pull(inputs.d_out)

    return jax.block_until_ready(run(inputs.q, inputs.k, inputs.v, inputs.z))


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=[] if c is SHORT else pytest.mark.slow) for c in (SHORT, *SMALL_ENOUGH)],
)
def test_routed_equals_autodiff_of_the_mixture(case):
    inputs = make_inputs(case)
    got, wanted = (routed_value_and_grads(inputs, impl) for impl in ("triton", "reference"))
    for name, a, b in zip(("out", "dq", "dk", "dv", "dz"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, name)


def test_routed_in_bfloat16():
    inputs = make_inputs(SHORT, jnp.bfloat16)
    got, wanted = (routed_value_and_grads(inputs, impl) for impl in ("triton", "reference"))
    for name, a, b in zip(("out", "dq", "dk", "dv", "dz"), got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, 2e-2, name)


@pytest.mark.parametrize(
    "case, listed",
    [
        pytest.param(SHORT, "block_mask", id="fa-xa"),
        pytest.param(SHORT, "full_block_mask", id="xa-ssa"),
        *(pytest.param(NAMED["packed"], x, marks=pytest.mark.slow) for x in ("block_mask", "full_block_mask", "both")),
    ],
)
def test_routed_between_listed_and_other_blocks(case, listed):
    inputs = make_inputs(case)
    masks = dict(zip(("block_mask", "full_block_mask"), random_block_masks(case), strict=True))
    masks = masks if listed == "both" else {listed: masks[listed]}
    got, wanted = (routed_value_and_grads(inputs, impl, **masks) for impl in ("triton", "reference"))
    for name, a, b in zip(("out", "dq", "dk", "dv", "dz"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, name)


@pytest.mark.parametrize(
    "case, listed",
    [
        pytest.param(SHORT, (), id="last queries"),
        pytest.param(SHORT, ("full_block_mask",), id="last queries, listed"),
        pytest.param(NAMED["packed"], (), id="packed", marks=pytest.mark.slow),
        pytest.param(NAMED["packed"], ("block_mask",), id="packed, listed", marks=pytest.mark.slow),
    ],
)
def test_dual_equals_two_dense_attentions(case, listed):
    inputs = make_inputs(case)
    options = inputs.options | dict(zip(listed, random_block_masks(case), strict=False))

    def run(impl):
        @jax.jit
        def both(q, k, v):
            outs, pull = jax.vjp(lambda *a: dual_attention(*a, **options, impl=impl), q, k, v)
            return *outs, *pull((inputs.d_out, inputs.d_out * 0.5))

        return jax.block_until_ready(both(inputs.q, inputs.k, inputs.v))

    for what, a, b in zip(("full", "sparse", "dq", "dk", "dv"), run("triton"), run("reference"), strict=True):
        assert_close(a, b, 1e-5, what)


def test_gates_ignore_padding():
    """NaN in the cotangent of padding must not reach the gradient of the gates."""
    inputs = make_inputs(SHORT)
    exists = (jnp.arange(70) < 67)[None, -55:, None, None]

    @jax.jit
    def dz(value):
        _, pull = jax.vjp(
            lambda z: routed_attention(inputs.q, inputs.k, inputs.v, z, **inputs.options, impl="triton"), inputs.z
        )
        return pull(jnp.where(exists, inputs.d_out, value))[0]

    assert bool((dz(0.0) == dz(jnp.nan)).all())

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, PARAMETERS, assert_close, make_inputs, random_block_masks

from pallas_kernels import dual_attention, hybrid_attention, routed_attention

NAMED = {case.name: case for case in CASES}


def routed_value_and_grads(inputs, impl, **masks):
    @jax.jit
    def run(q, k, v, z):
        out, pull = jax.vjp(lambda *a: routed_attention(*a, **inputs.options, **masks, impl=impl), q, k, v, z)
        return out, *pull(inputs.d_out)

    return run(inputs.q, inputs.k, inputs.v, inputs.z)


@pytest.mark.parametrize("case", PARAMETERS)
def test_routed_equals_autodiff_of_the_mixture(case):
    inputs = make_inputs(case)
    got, wanted = (routed_value_and_grads(inputs, impl) for impl in ("xla", "reference"))
    for name, a, b in zip(("out", "dq", "dk", "dv", "dz"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, name)


@pytest.mark.parametrize(
    "name, listed",
    [("packed", "block_mask"), pytest.param("many blocks", "full_block_mask", marks=pytest.mark.slow)],
)
def test_routed_between_listed_and_other_blocks(name, listed):
    inputs = make_inputs(NAMED[name])
    masks = {listed: random_block_masks(NAMED[name])[0]}
    got, wanted = (routed_value_and_grads(inputs, impl, **masks) for impl in ("xla", "reference"))
    for what, a, b in zip(("out", "dq", "dk", "dv", "dz"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, what)


def test_routed_in_bfloat16():
    inputs = make_inputs(NAMED["packed"], jnp.bfloat16)
    got, wanted = (routed_value_and_grads(inputs, impl) for impl in ("xla", "reference"))
    for name, a, b in zip(("out", "dq", "dk", "dv", "dz"), got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, 2e-2, name)


def test_gradient_of_the_gates_is_the_slope_of_the_mixture():
    """Finite differences of <dO, z * full + (1 - z) * sparse>, with the two branches from hybrid_attention."""
    inputs = make_inputs(NAMED["padded"])
    *_, dz = routed_value_and_grads(inputs, "xla")
    full, sparse = (
        np.asarray(hybrid_attention(inputs.q, inputs.k, inputs.v, jnp.full_like(inputs.mode, m), **inputs.options))
        for m in (0, 1)
    )
    groups = full.shape[2] // dz.shape[1]
    d_out, step = np.asarray(inputs.d_out, np.float64), 0.25
    for b, head in np.ndindex(dz.shape):

        def loss(shift, b=b, head=head):
            gate = np.asarray(inputs.z, np.float64)
            gate[b, head] += shift
            gate = np.repeat(gate, groups, axis=1)[:, None, :, None]
            return (d_out * (gate * full + (1 - gate) * sparse)).sum()

        slope = (loss(step) - loss(-step)) / (2 * step)
        np.testing.assert_allclose(dz[b, head], slope, atol=1e-4)


@pytest.mark.parametrize("name, listed", [("packed", ()), ("last queries", ()), ("last queries", ("full_block_mask",))])
def test_dual_equals_two_dense_attentions(name, listed):
    inputs = make_inputs(NAMED[name])
    options = inputs.options | dict(zip(listed, random_block_masks(NAMED[name]), strict=False))

    def run(impl):
        @jax.jit
        def both(q, k, v):
            outs, pull = jax.vjp(lambda *a: dual_attention(*a, **options, impl=impl), q, k, v)
            return *outs, *pull((inputs.d_out, inputs.d_out * 0.5))

        return both(inputs.q, inputs.k, inputs.v)

    for what, a, b in zip(("full", "sparse", "dq", "dk", "dv"), run("xla"), run("reference"), strict=True):
        assert_close(a, b, 1e-5, what)


def test_gates_of_the_wrong_shape_are_refused():
    inputs = make_inputs(NAMED["packed"])
    with pytest.raises(ValueError, match="z has shape"):
        routed_attention(inputs.q, inputs.k, inputs.v, inputs.z[..., :2], **inputs.options)
    with pytest.raises(ValueError, match="z holds 0.5"):
        routed_attention(inputs.q, inputs.k, inputs.v, inputs.z * 0.5, **inputs.options)


def test_masks_of_the_wrong_shape_are_refused():
    inputs = make_inputs(NAMED["packed"])
    mask = jnp.ones((2, 9, 10, 9), jnp.bool_)
    with pytest.raises(ValueError, match="full_block_mask is bool"):
        routed_attention(inputs.q, inputs.k, inputs.v, inputs.z, **inputs.options, full_block_mask=mask)
    with pytest.raises(ValueError, match="block_mask is bool"):
        dual_attention(inputs.q, inputs.k, inputs.v, **inputs.options, block_mask=mask)

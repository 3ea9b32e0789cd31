import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import NAMED, assert_close, make_inputs
from op_table import Row, computed, inputs_of, wanted
from tpu_tools import interpreted, quick_jit

from pallas_kernels import dual_attention, hybrid_attention, routed_attention


def test_gradient_of_the_gates_is_the_slope_of_the_mixture():
    """Finite differences of <dO, z * full + (1 - z) * sparse>, with the two branches from hybrid_attention."""
    row = Row("routed", NAMED["padded"])
    inputs, _ = inputs_of(row)
    dz = computed(row, "xla")["dz"]
    branch = jax.jit(lambda mode: hybrid_attention(inputs.q, inputs.k, inputs.v, mode, **inputs.options))
    full, sparse = (np.asarray(branch(jnp.full_like(inputs.mode, mode))) for mode in (0, 1))
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


def test_the_backward_pass_visits_only_what_a_cotangent_reaches():
    """The first KV head holds NaN, and nobody uses its outputs: a visit to its keys would spread them."""
    row = Row("hybrid", NAMED["padded"], lse=True)
    inputs, _ = inputs_of(row)
    groups = inputs.q.shape[2] // inputs.k.shape[2]
    k = inputs.k.at[:, :, 0].set(jnp.nan)

    @jax.jit
    def gradients(q, k, v, d_out, d_lse):
        (_, lse), pull = jax.vjp(
            lambda *operands: hybrid_attention(*operands, inputs.mode, **inputs.options, return_lse=True), q, k, v
        )
        return pull((d_out, jnp.where(jnp.isneginf(lse), 0.0, d_lse)))

    d_lse = jnp.ones(inputs.q.shape[:3]).at[:, :, :groups].set(0.0)
    used = (inputs.d_out.at[:, :, :groups].set(0.0), d_lse)
    with_nan, without = (gradients(inputs.q, keys, inputs.v, *used) for keys in (k, inputs.k))
    for got, want in zip(with_nan, without, strict=True):
        np.testing.assert_array_equal(got, want)
    assert all(np.abs(want).max() > 0 for want in without)


@pytest.mark.slow
def test_routed_without_gradients_runs_the_chosen_branch_only():
    row = Row("routed", NAMED["many blocks"])
    inputs, _ = inputs_of(row)
    run = quick_jit(lambda z: routed_attention(inputs.q, inputs.k, inputs.v, z, **inputs.options, impl="tpu"))
    with interpreted(2):
        got = run(inputs.z).block_until_ready()
    assert_close(got, wanted(row)["out"], 1e-5)
    assert got.dtype == jnp.float32


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

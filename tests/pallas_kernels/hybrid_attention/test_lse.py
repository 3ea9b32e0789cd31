import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import NAMED, assert_close, make_inputs

from pallas_kernels import hybrid_attention


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_is_the_logarithm_of_the_sum_over_visible_keys(impl):
    case = NAMED["padded"]
    inputs = make_inputs(case)
    mode = jnp.zeros_like(inputs.mode)
    out, lse = hybrid_attention(
        inputs.q, inputs.k, inputs.v, mode, **inputs.options, scale=0.7, return_lse=True, impl=impl
    )
    q, k = np.asarray(inputs.q, np.float64), np.repeat(np.asarray(inputs.k, np.float64), case.groups, axis=2)
    for row, length in enumerate(case.lengths):
        scores = 0.7 * np.einsum("tnh,snh->tns", q[row, :length], k[row, :length])
        scores = np.where(np.tri(length, dtype=bool)[:, None], scores, -np.inf)
        np.testing.assert_allclose(lse[row, :length], np.log(np.exp(scores).sum(-1)), atol=1e-5)
        assert bool(jnp.isneginf(lse[row, length:]).all()) and not out[row, length:].any()


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_two_ranges_of_keys_make_the_whole(impl):
    """Each half of the key blocks attended apart, put together by the log-sum-exp: value and gradients."""
    inputs = make_inputs(NAMED["many blocks"])
    mode = jnp.zeros_like(inputs.mode)
    blocks = -(-inputs.k.shape[1] // inputs.options["block_size"])
    early = jnp.broadcast_to(jnp.arange(blocks) < 4, (*inputs.q.shape[::2], blocks, blocks))

    def attend(operands, **options):
        return hybrid_attention(*operands, mode, **inputs.options, **options, impl=impl)

    def merged(*operands):
        halves = [attend(operands, full_block_mask=mask, return_lse=True) for mask in (early, ~early)]
        lse = jnp.logaddexp(halves[0][1], halves[1][1])
        return sum(jnp.exp(part - lse)[..., None] * out for out, part in halves)

    def run(attention):
        out, pull = jax.vjp(attention, inputs.q, inputs.k, inputs.v)
        return out, *pull(inputs.d_out)

    got = jax.jit(lambda: run(merged))()
    wanted = jax.jit(lambda: run(lambda *operands: attend(operands)))()
    for what, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, what)

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, assert_close, make_inputs, random_block_masks

from pallas_kernels import hybrid_attention

NAMED = {case.name: case for case in CASES}
NAMES = ("out", "lse", "dq", "dk", "dv")


def values_and_grads(inputs, impl, **masks):
    """Output, log-sum-exp and gradients under cotangents of both; queries that see nothing have no log-sum-exp."""
    d_lse = jnp.cos(jnp.arange(inputs.q[..., 0].size, dtype=jnp.float32)).reshape(inputs.q.shape[:3])

    @jax.jit
    def run(q, k, v):
        def both(*operands):
            return hybrid_attention(*operands, inputs.mode, **inputs.options, **masks, return_lse=True, impl=impl)

        outs, pull = jax.vjp(both, q, k, v)
        return *outs, *pull((inputs.d_out, d_lse))

    return run(inputs.q, inputs.k, inputs.v)


@pytest.mark.parametrize(
    "name, listed",
    [("padded", ()), ("packed", ("block_mask",)), ("last queries", ("block_mask", "full_block_mask"))],
)
def test_equals_the_dense_reference(name, listed):
    inputs = make_inputs(NAMED[name])
    masks = dict(zip(listed, random_block_masks(NAMED[name]), strict=False))
    got, wanted = (values_and_grads(inputs, impl, **masks) for impl in ("xla", "reference"))
    np.testing.assert_array_equal(jnp.isneginf(got[1]), jnp.isneginf(wanted[1]))
    assert got[1].dtype == jnp.float32
    for what, a, b in zip(NAMES, got, wanted, strict=True):
        assert_close(jnp.where(jnp.isneginf(a), 0, a), jnp.where(jnp.isneginf(b), 0, b), 1e-5, what)


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


@pytest.mark.parametrize("impl", ["tpu", "triton", "mosaic_gpu"])
def test_implementations_without_it_say_so(impl):
    inputs = make_inputs(NAMED["one token"])
    with pytest.raises(NotImplementedError, match="return_lse has no .* Use one of: auto, reference, xla"):
        hybrid_attention(inputs.q, inputs.k, inputs.v, inputs.mode, **inputs.options, return_lse=True, impl=impl)

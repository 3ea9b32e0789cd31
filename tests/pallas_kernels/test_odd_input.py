"""Input that is wrong or strange, for every op that takes whole sequences: refused with words, or harmless."""

import jax
import jax.numpy as jnp
import pytest
from attention_cases import make_inputs
from attention_ops import NAMED, OPS, call, outputs_and_gradients

from pallas_kernels import routed_attention, select_blocks

EVERY_OP = pytest.mark.parametrize("op", [*OPS, "select_blocks"])
EVERY_IMPL = pytest.mark.parametrize("impl", ["reference", "xla"])


def run(op, impl, inputs, q, k, v, **changes):
    if op != "select_blocks":
        return call(op, impl, inputs, q, k, v, **changes)
    rows = {name: inputs.options[name] for name in ("segment_ids", "lengths")} | changes
    return select_blocks(q, k, stride=4, block_size=16, impl=impl, **rows)


@EVERY_OP
@EVERY_IMPL
def test_a_sample_that_does_not_start_on_a_block_is_refused(op, impl):
    inputs = make_inputs(NAMED["packed"])
    shifted = inputs.options["segment_ids"].at[1, 100:].set(0).at[1, 105:].set(2)
    with pytest.raises(ValueError, match="segment 2 of row 1 starts .* at token 105; .* multiple of block_size=16"):
        run(op, impl, inputs, inputs.q, inputs.k, inputs.v, segment_ids=shifted)


@EVERY_OP
@EVERY_IMPL
def test_sequences_without_tokens_are_refused(op, impl):
    inputs = make_inputs(NAMED["many blocks"])
    empty = inputs.k[:, :0]
    with pytest.raises(ValueError, match="wanted four non-empty axes"):
        run(op, impl, inputs, inputs.q, empty, empty)
    with pytest.raises(ValueError, match="wanted four non-empty axes"):
        run(op, impl, inputs, inputs.q[:, :0], inputs.k, inputs.v)


@EVERY_OP
@EVERY_IMPL
def test_masks_of_the_wrong_shape_are_refused(op, impl):
    inputs = make_inputs(NAMED["many blocks"])
    name, wrong, words = "block_mask", jnp.ones((2, 2, 10, 10), jnp.bool_), r"wanted bool\(2, 6, 10, 10\)"
    if op == "select_blocks":
        name, wrong, words = "heads", jnp.ones((2, 6), jnp.bool_), r"wanted bool\(2, 2\)"
    with pytest.raises(ValueError, match=words):
        run(op, impl, inputs, inputs.q, inputs.k, inputs.v, **{name: wrong})


@EVERY_IMPL
@pytest.mark.parametrize("op", OPS)
def test_padding_may_hold_anything_forward_and_backward(op, impl):
    inputs = make_inputs(NAMED["packed"])
    exists = (inputs.options["segment_ids"] > 0)[..., None, None]
    compiled = outputs_and_gradients(op, impl, "packed")

    def with_padding(value):
        return jax.tree.leaves(
            compiled(*(jnp.where(exists, x, value) for x in (inputs.q, inputs.k, inputs.v, inputs.d_out)))
        )

    clean = with_padding(0.0)
    for value in (jnp.nan, jnp.inf):
        for a, b in zip(clean, with_padding(value), strict=True):
            assert bool((a == b).all())
            assert bool((jnp.where(exists, 0, b) == 0).all())


@EVERY_IMPL
def test_padding_may_hold_anything_for_gates_and_choices(impl):
    inputs = make_inputs(NAMED["packed"])
    exists = (inputs.options["segment_ids"] > 0)[..., None, None]

    @jax.jit
    def both(value):
        q, k, v, d_out = (jnp.where(exists, x, value) for x in (inputs.q, inputs.k, inputs.v, inputs.d_out))
        _, pull = jax.vjp(lambda z: routed_attention(q, k, v, z, **inputs.options, impl=impl), inputs.z)
        return pull(d_out)[0], run("select_blocks", impl, inputs, q, k, v)

    clean = both(0.0)
    for value in (jnp.nan, jnp.inf):
        assert all(bool((a == b).all()) for a, b in zip(clean, both(value), strict=True))


@EVERY_IMPL
def test_gates_known_at_run_time_only_are_full_above_a_half(impl):
    """Concrete gates other than 0 and 1 are refused; those of a compiled program cannot be looked at."""
    inputs = make_inputs(NAMED["packed"])
    compiled = jax.jit(lambda z: routed_attention(inputs.q, inputs.k, inputs.v, z, **inputs.options, impl=impl))
    assert bool((compiled(0.4 + 0.2 * inputs.z) == compiled(inputs.z)).all())
    assert not bool((compiled(1 - inputs.z) == compiled(inputs.z)).all())
    with pytest.raises(ValueError, match="z holds 0.4"):
        routed_attention(inputs.q, inputs.k, inputs.v, 0.4 + 0.2 * (inputs.z > 2), **inputs.options, impl=impl)

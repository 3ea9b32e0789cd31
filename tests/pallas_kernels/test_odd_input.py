"""Input that is wrong or strange, for every op that takes whole sequences: refused with words, or harmless."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import NAMED, make_inputs
from op_table import Row, computed, inputs_of, padded_with

from pallas_kernels import dual_attention, hybrid_attention, routed_attention, select_blocks

OPS = {"hybrid": hybrid_attention, "dual": dual_attention, "routed": routed_attention}
EVERY_OP = pytest.mark.parametrize("op", [*OPS, "select_blocks"])
EVERY_IMPL = pytest.mark.parametrize("impl", ["reference", "xla"])


def run(op, impl, inputs, q, k, v, **changes):
    if op != "select_blocks":
        choice = {"hybrid": [inputs.mode], "routed": [inputs.z]}.get(op, [])
        return OPS[op](q, k, v, *choice, **inputs.options | {"impl": impl} | changes)
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
@pytest.mark.parametrize("case", ["packed", "last queries"])
@pytest.mark.parametrize("op", OPS)
def test_padding_may_hold_anything_forward_and_backward(op, case, impl):
    """The table of each op puts NaN there; here it makes no difference to any bit, and infinity neither."""
    row = Row(op, NAMED[case])
    clean, *dirty = (computed(row, impl, value) for value in (0.0, np.nan, np.inf))
    ones = {name: jnp.ones_like(getattr(inputs_of(row)[0], name)) for name in ("q", "k", "v")}
    exists = padded_with(replace(inputs_of(row)[0], **ones), 0.0)
    places = {"dk": exists.k, "dv": exists.v} | dict.fromkeys(("out", "full", "sparse", "dq"), exists.q)
    for name in places.keys() & clean.keys():
        assert not clean[name][np.asarray(places[name]) == 0].any(), name
    for other in dirty:
        for name, values in clean.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)


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
        routed_attention(inputs.q, inputs.k, inputs.v, 0.4 + 0 * inputs.z, **inputs.options, impl=impl)

"""The quantiser against hand-computed groups and against its error bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import dequantize_group, quantize_group

IMPLS = ["reference", "xla"]
KEYS = np.array(
    [[0, 3, 1.5, 0.5, 2.5, 1, 2, 0.25], [-1.5, 0, 1.5, 3, -0.75, 0.75, 2.25, -1], [7] * 8], np.float32
).T  # [tokens, channels]
BIASED = jnp.array([100.3, 100.6, 101, 101.3])


@pytest.mark.parametrize("impl", IMPLS)
def test_keys_by_channel(impl):
    """Ties go to the even code; a constant channel has scale 0 and decodes exactly."""
    codes, scale, zero = quantize_group(KEYS, axis=0, bits=2, impl=impl)
    np.testing.assert_array_equal(scale, [1, 1.5, 0])
    np.testing.assert_array_equal(zero, [0, -1.5, 7])
    np.testing.assert_array_equal(
        codes.T, [[0, 3, 2, 0, 2, 1, 2, 0], [0, 1, 2, 3, 0, 2, 2, 0], [0, 0, 0, 0, 0, 0, 0, 0]]
    )
    back = dequantize_group(codes, scale, zero, axis=0, impl=impl)
    np.testing.assert_array_equal(back.T, [[0, 3, 2, 0, 2, 1, 2, 0], [-1.5, 0, 1.5, 3, -1.5, 1.5, 1.5, -1.5], [7] * 8])
    np.testing.assert_array_equal(np.abs(back - KEYS).max(0), [0.5, 0.75, 0])


@pytest.mark.parametrize("impl", IMPLS)
def test_values_by_token(impl):
    values = jnp.array(
        [[0, 1, 2, 3, -3, 0, 3, 6], [0.4, 0.6, 1, 1.6, 5, 5, 5, 5], [-1, 1, -0.5, 0.25, 0, 0.5, 1, 12]]
    ).reshape(3, 2, 4)
    codes, scale, zero = quantize_group(values, axis=-1, bits=2, impl=impl)
    np.testing.assert_allclose(scale, [[1, 3], [0.4, 0], [2 / 3, 4]], rtol=1e-6)
    np.testing.assert_array_equal(zero, np.float32([[0, -3], [0.4, 5], [-1, 0]]))
    np.testing.assert_array_equal(codes[0], [[0, 1, 2, 3]] * 2)
    np.testing.assert_array_equal(codes[2], [[0, 3, 1, 2], [0, 0, 0, 3]])
    back = dequantize_group(codes, scale, zero, axis=-1, impl=impl)
    np.testing.assert_allclose(back[2], [[-1, 1, -1 / 3, 1 / 3], [0, 0, 0, 12]], rtol=1e-6)
    assert (jnp.abs(back - values) <= scale[..., None] / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("dtype", "scale", "zero", "codes"),
    [
        (jnp.float32, 1 / 3, 100.3, [0, 1, 2, 3]),
        (jnp.bfloat16, 0.333984, 100.5, [0, 0, 1, 2]),
        (jnp.float16, 0.333252, 100.3125, [0, 1, 2, 3]),
    ],
)
def test_codes_follow_from_the_stored_metadata(dtype, scale, zero, codes):
    got, s, z = quantize_group(BIASED, axis=0, bits=2, metadata_dtype=dtype)
    assert (s.dtype, z.dtype) == (dtype, dtype)
    np.testing.assert_allclose([float(s), float(z)], [scale, zero], atol=1e-5)
    np.testing.assert_array_equal(got, codes)


def test_metadata_out_of_range_is_held_finite():
    x = jnp.array([-3e5, 0.0, 3e5])
    back = dequantize_group(*quantize_group(x, axis=0, bits=8, metadata_dtype=jnp.float16), axis=0)
    np.testing.assert_allclose(back, [-65504, 0, 3e5], atol=1200)


@pytest.mark.parametrize("impl", IMPLS)
def test_outliers_left_out_of_a_group_do_not_stretch_it(impl):
    keys = np.array(
        [
            [8, 1, -1, 0.5], [8.5, 0.5, -0.5, 1], [0.5, 0.25, 0, -0.25], [9, -1, 1, 0],
            [8.25, 1.5, -1.5, 0.5], [8.75, 0, 0.5, -0.5], [0.25, -0.25, 0.25, 0.5], [9.5, -0.5, 0, 1],
        ],
        np.float32,
    )  # fmt: skip
    kept = np.array([1, 1, 0, 1, 1, 1, 0, 1], bool)

    def error(codes, scale, zero):
        return float(np.mean((np.asarray(dequantize_group(codes, scale, zero, axis=0))[kept] - keys[kept]) ** 2))

    plain = quantize_group(keys, axis=0, bits=2, impl=impl)
    np.testing.assert_allclose(plain[1], [3.083333, 0.833333, 0.833333, 0.5], rtol=1e-6)
    np.testing.assert_allclose(error(*plain), 0.257523, rtol=1e-5)
    codes, scale, zero = quantize_group(keys, axis=0, bits=2, valid=kept[:, None], impl=impl)
    np.testing.assert_allclose(scale, [0.5, 0.833333, 0.833333, 0.5], rtol=1e-6)
    np.testing.assert_array_equal(zero, [8, -1, -1.5, -0.5])
    np.testing.assert_array_equal(
        codes[kept], [[0, 2, 1, 2], [1, 2, 1, 3], [2, 0, 3, 1], [0, 3, 0, 2], [2, 1, 2, 0], [3, 1, 2, 3]]
    )
    assert (codes[~kept] == 0).all()
    np.testing.assert_allclose(error(codes, scale, zero), 0.028356, rtol=1e-4)


def test_a_group_without_valid_elements_is_harmless():
    codes, scale, zero = quantize_group(jnp.ones((4, 2)), axis=0, bits=2, valid=jnp.zeros((4, 2), bool))
    assert not codes.any() and not scale.any() and not zero.any()


@pytest.mark.parametrize("impl", IMPLS)
def test_codes_are_those_of_correctly_rounded_arithmetic(impl):
    """Multiples of an eighth make many ties; a product with a reciprocal would send some of them the wrong way."""
    rng = np.random.default_rng(0)
    x = (rng.integers(-40, 40, (32, 256)) / 8 + rng.integers(-9, 9, 256) / 8).astype(np.float32)
    codes, scale, zero = quantize(x, axis=0, bits=2, impl=impl)
    s = np.ptp(x, axis=0) / np.float32(3)
    np.testing.assert_array_equal(scale, s)
    np.testing.assert_array_equal(zero, x.min(0))
    np.testing.assert_array_equal(codes, np.rint(np.clip((x - x.min(0)) / s, 0, 3)))


quantize = jax.jit(quantize_group, static_argnames=("axis", "bits", "metadata_dtype", "impl"))
numbers = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@settings(max_examples=60)
@given(
    x=st.lists(numbers, min_size=24, max_size=24),
    valid=st.lists(st.booleans(), min_size=24, max_size=24),
    bits=st.sampled_from([2, 4, 8]),
    dtype=st.sampled_from([jnp.float32, jnp.float16]),
)
def test_error_is_at_most_half_a_step_and_the_rounding_of_the_metadata(x, valid, bits, dtype):
    x, valid = np.array(x, np.float32).reshape(8, 3), np.array(valid).reshape(8, 3)
    got = quantize(x, axis=0, bits=bits, valid=valid, metadata_dtype=dtype, impl="xla")
    wanted = quantize(x, axis=0, bits=bits, valid=valid, metadata_dtype=dtype, impl="reference")
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    back = np.asarray(dequantize_group(*got, axis=0), np.float64)
    scale, zero = (np.asarray(y, np.float64) for y in got[1:])
    for channel in range(3):
        kept = x[valid[:, channel], channel].astype(np.float64)
        if not kept.size:
            continue
        low, exact = kept.min(), np.ptp(kept) / (2**bits - 1)
        bound = scale[channel] / 2 + abs(zero[channel] - low) + (2**bits - 1) * abs(scale[channel] - exact) + 1e-3
        assert np.abs(back[valid[:, channel], channel] - kept).max() <= bound


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"bits": 3}, "bits is 3; wanted 1, 2, 4 or 8"),
        ({"axis": 2}, "along axis 2"),
        ({"x": jnp.ones((0, 4))}, "at least one element"),
        ({"x": jnp.ones((8, 4), jnp.int32)}, "x is int32"),
        ({"metadata_dtype": jnp.int8}, "metadata_dtype is int8"),
        ({"valid": jnp.ones((8, 4))}, "wanted bool"),
        ({"valid": jnp.ones((2, 8, 4), bool)}, "broadcastable to (8, 4)"),
        ({"impl": "cuda"}, "unknown impl"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError) as error:
        quantize_group(**({"x": jnp.ones((8, 4)), "axis": 0, "bits": 2} | arguments))
    assert words in str(error.value)


def test_metadata_of_another_shape_is_named():
    with pytest.raises(ValueError, match="scale has shape"):
        dequantize_group(jnp.zeros((8, 4), jnp.uint8), jnp.ones((8,)), jnp.ones((4,)), axis=0)

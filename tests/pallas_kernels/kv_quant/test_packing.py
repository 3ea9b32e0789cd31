"""Planar tiles against words written out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import pack, unpack

IMPLS = ["reference", "xla"]


def column(codes):
    return jnp.asarray(codes, jnp.uint8)[:, None]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([0, 1, 2, 3, 3, 2, 1, 0, 0, 0, 1, 1, 2, 2, 3, 3], [0xFA501BE4]),
        ([3] * 16, [0xFFFFFFFF]),
        ([t % 4 for t in range(16)], [0xE4E4E4E4]),
        ([t // 8 for t in range(16)], [0x55550000]),
        ([2 + t // 8 for t in range(16)], [0xFFFFAAAA]),
        ([t // 8 for t in range(32)], [0xFFAA5500, 0xFFAA5500]),
        ([t % 4 for t in range(32)], [0x88888888, 0xDDDDDDDD]),
    ],
)
def test_columns(codes, words, impl):
    got = pack(column(codes), bits=2, impl=impl)
    assert got.dtype == jnp.uint32
    np.testing.assert_array_equal(got[:, 0], np.array(words, np.uint32))
    np.testing.assert_array_equal(unpack(got, bits=2, impl=impl)[:, 0], codes)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("code", [4, 255, -1])
def test_codes_out_of_range_are_refused_and_never_change_their_neighbours(code, impl):
    codes = jnp.ones((16, 1), jnp.int32).at[3].set(code)
    with pytest.raises(ValueError, match=r"codes run from .*; wanted 0 to 3"):
        pack(codes, bits=2, impl=impl)
    kept = unpack(packed(codes, bits=2, impl=impl), bits=2)
    np.testing.assert_array_equal(np.delete(kept[:, 0], 3), np.ones(15))


packed = jax.jit(pack, static_argnames=("bits", "impl"))
unpacked = jax.jit(unpack, static_argnames=("bits", "impl"))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), bits=st.sampled_from([1, 2, 4, 8]))
def test_round_trip(seed, bits):
    codes = np.random.default_rng(seed).integers(0, 2**bits, (2, 32, 3), np.uint8)
    words = packed(codes, bits=bits)
    assert words.nbytes == codes.size * bits // 8
    np.testing.assert_array_equal(words, packed(codes, bits=bits, impl="reference"))
    for impl in IMPLS:
        np.testing.assert_array_equal(unpacked(words, bits=bits, impl=impl), codes)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pack(jnp.zeros((24, 2), jnp.uint8), bits=2), "multiple of 16 tokens"),
        (lambda: pack(jnp.zeros((32, 2)), bits=2), "codes are float32"),
        (lambda: pack(jnp.zeros((32,), jnp.uint8), bits=2), "[..., tokens, channels]"),
        (lambda: unpack(jnp.zeros((2, 2), jnp.int32), bits=2), "words are int32"),
        (lambda: unpack(jnp.zeros((2, 2), jnp.uint32), bits=16), "bits is 16"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value)

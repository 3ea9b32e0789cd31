import jax.numpy as jnp
import pytest
from decode_cases import DECODE_CASES, SMALL_GROUPS, assert_equals_the_definition
from triton_interpreter import interpreted

from pallas_kernels.decode_attention.triton import merge_parts

CASES = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])
    for case in [*DECODE_CASES, *SMALL_GROUPS]
]
NAMED = {case.name: case for case in DECODE_CASES}


@pytest.fixture(autouse=True)
def on_the_interpreter(monkeypatch):
    with interpreted(monkeypatch):
        yield


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(case):
    assert_equals_the_definition(case, "triton")


def test_parts_that_saw_nothing_give_zeros():
    seen, unseen = jnp.ones((1, 1, 1, 1, 4)), jnp.zeros((1, 1, 1, 1, 4))
    top, none = jnp.full((1, 1, 1, 1), -3.0), jnp.full((1, 1, 1, 1), -1e30)
    total, nothing = jnp.full((1, 1, 1, 1), 2.0), jnp.zeros((1, 1, 1, 1))
    both = [jnp.concatenate(pair, axis=2) for pair in ((seen, unseen), (top, none), (total, nothing))]
    assert (merge_parts(*both) == 0.5).all()
    assert (merge_parts(unseen, none, nothing) == 0).all()


@pytest.mark.parametrize("dtype, tolerance", [(jnp.bfloat16, 1e-2), (jnp.float16, 2e-3)])
def test_16_bit_operands_accumulate_in_float32(dtype, tolerance):
    assert_equals_the_definition(NAMED["8 queries, 4 bits, norms"], "triton", dtype, tolerance)

from functools import partial

import jax.numpy as jnp
import pytest
from attention_cases import assert_close
from decode_cases import DECODE_CASES, SMALL_GROUPS, DecodeCase, make_decode_inputs
from tpu_tools import interpreted, quick_jit

from pallas_kernels import decode_attention

QUICK = ("8 queries, 4 bits, norms",)
CASES = [
    pytest.param(case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.slow])
    for case in [*DECODE_CASES, *SMALL_GROUPS]
]
NAMED = {case.name: case for case in DECODE_CASES}


def compare(case: DecodeCase, dtype=jnp.float32, tolerance: float = 1e-5, widest_tile: int = 1, **how) -> None:
    inputs = make_decode_inputs(case, dtype)
    attend = partial(decode_attention, **case.options())
    with interpreted(widest_tile, **how):
        got = quick_jit(partial(attend, impl="tpu"))(*inputs).block_until_ready()
    wanted = quick_jit(partial(attend, impl="reference"))(*inputs)
    assert got.dtype == wanted.dtype
    assert_close(got, wanted, tolerance)


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(case):
    compare(case)

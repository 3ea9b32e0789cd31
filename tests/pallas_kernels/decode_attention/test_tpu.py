from functools import partial

import pytest
from decode_cases import DECODE_CASES, SMALL_GROUPS, assert_equals_the_definition
from tpu_tools import interpreted

QUICK = ("8 queries, 4 bits, norms",)
CASES = [
    pytest.param(case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.slow])
    for case in [*DECODE_CASES, *SMALL_GROUPS]
]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(case):
    assert_equals_the_definition(case, "tpu", interpreter=partial(interpreted, 1))

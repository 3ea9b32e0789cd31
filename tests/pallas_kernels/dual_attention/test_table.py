"""Both branches, and the mixture that routes between them: every implementation against the reference, see `op_table`.

The reference of routed attention is the automatic derivative of the mixture, that of dual attention two dense ones.
"""

import pytest
from attention_cases import CASES, NAMED, Case
from op_table import Row, cells, check

BOTH, SPARSE, FULL = ("block_mask", "full_block_mask"), ("block_mask",), ("full_block_mask",)
SHORT = Case("an odd number of blocks", 70, queries=55, kv_heads=2, groups=2, lengths=(67,))
QUICK = (
    "one token",
    "above a block",
    "many blocks",
    "padded",
    "last queries",
    "packed",
    "window in packed rows",
    "published, 127",
    "wide local",
)


def plain(case: Case) -> Row:
    """A case without masks, for all implementations that are fast enough."""
    quick = ["xla"] * (case.name in QUICK) + ["tpu"] * (case.name == "many blocks")
    able = ["xla", "tpu", *["triton"] * (case.keys <= 700)]
    return Row("routed", case, quick=" ".join(quick), slow=" ".join(x for x in able if x not in quick))


ROWS = [
    *map(plain, CASES),
    Row("routed", SHORT, quick="triton"),
    Row("routed", SHORT, dtype="bfloat16", quick="triton"),
    Row("routed", NAMED["packed"], dtype="bfloat16", quick="xla", slow="tpu"),
    Row("routed", NAMED["packed"], SPARSE, dtype="bfloat16", slow="tpu"),
    Row("routed", SHORT, SPARSE, quick="triton tpu"),
    Row("routed", SHORT, FULL, quick="triton", slow="tpu"),
    Row("routed", NAMED["packed"], SPARSE, quick="xla", slow="triton"),
    Row("routed", NAMED["packed"], FULL, slow="triton"),
    Row("routed", NAMED["packed"], BOTH, slow="triton tpu"),
    Row("routed", NAMED["last queries"], SPARSE, slow="tpu"),
    Row("routed", NAMED["many blocks"], FULL, slow="xla"),
    Row("dual", SHORT, quick="triton"),
    Row("dual", SHORT, FULL, quick="triton"),
    Row("dual", NAMED["packed"], quick="xla", slow="triton tpu"),
    Row("dual", NAMED["packed"], SPARSE, slow="triton tpu"),
    Row("dual", NAMED["last queries"], quick="xla", slow="tpu"),
    Row("dual", NAMED["last queries"], FULL, quick="xla"),
]


@pytest.mark.parametrize("row, impl", cells(ROWS))
def test_equals_the_reference(row: Row, impl: str):
    check(row, impl)

"""Hybrid attention: every implementation against the dense reference, see `op_table`."""

import pytest
from attention_cases import CASES, NAMED, SHORT, Case
from op_table import Row, cells, check

BOTH, SPARSE, FULL = ("block_mask", "full_block_mask"), ("block_mask",), ("full_block_mask",)
HOPPER = {"block": 128, "local": 1, "head_dim": 64}
ON_HOPPER = [
    Case("two blocks, ragged, last queries", 300, queries=150, groups=2, lengths=(290,), **HOPPER),
    Case("packed, a block of padding", 512, segments=((128, 200),), **HOPPER),
    Case("wide heads", 256, groups=2, **(HOPPER | {"head_dim": 128})),
    Case("published pattern", 2500, groups=2, kv_heads=2, **(HOPPER | {"local": 16})),
]
QUICK = {
    "one token": "xla triton",
    "above a block": "xla triton",
    "many blocks": "xla",
    "padded": "xla tpu",
    "last queries": "xla",
    "last queries, short": "triton",
    "packed": "xla",
    "window in packed rows": "xla tpu",
    "window in packed rows, short": "triton",
    "published, 127": "xla",
    "wide local": "xla",
}


def plain(case: Case) -> Row:
    """A case without masks, for all implementations that are fast enough."""
    quick = QUICK.get(case.name, "").split()
    able = ["xla", "tpu", *["triton"] * (case.keys <= 700)]
    return Row("hybrid", case, quick=" ".join(quick), slow=" ".join(x for x in able if x not in quick))


ROWS = [
    *map(plain, CASES),
    Row("hybrid", NAMED["many blocks"], dtype="bfloat16", quick="xla", slow="tpu"),
    Row("hybrid", SHORT, dtype="bfloat16", quick="triton"),
    Row("hybrid", SHORT, dtype="float16", quick="triton"),
    Row("hybrid", Case("96 wide", 40, queries=25, kv_heads=2, local=1, lengths=(37,), head_dim=96), quick="triton"),
    Row("hybrid", Case("256 wide", 40, queries=25, kv_heads=2, local=1, lengths=(37,), head_dim=256), slow="triton"),
    Row("hybrid", NAMED["many blocks"], tpu_tile=8, slow="tpu"),
    Row("hybrid", NAMED["last queries"], tpu_tile=8, slow="tpu"),
    Row("hybrid", SHORT, BOTH, quick="triton", slow="xla tpu"),
    Row("hybrid", SHORT, SPARSE, slow="triton"),
    Row("hybrid", SHORT, FULL, slow="triton"),
    Row("hybrid", NAMED["many blocks"], SPARSE, quick="tpu", slow="xla"),
    Row("hybrid", NAMED["many blocks"], BOTH, quick="xla", slow="tpu"),
    Row("hybrid", NAMED["packed"], SPARSE, slow="xla"),
    Row("hybrid", NAMED["packed"], BOTH, slow="triton"),
    Row("hybrid", NAMED["last queries"], FULL, quick="xla"),
    Row("hybrid", NAMED["window in packed rows"], SPARSE, slow="xla"),
    Row("hybrid", NAMED["padded"], SPARSE, slow="xla"),
    Row("hybrid", NAMED["published, 700"], BOTH, slow="xla"),
    Row("hybrid", NAMED["padded"], lse=True, quick="xla"),
    Row("hybrid", SHORT, lse=True, slow="triton"),
    Row("hybrid", SHORT, BOTH, lse=True, quick="triton tpu"),
    Row("hybrid", NAMED["packed"], SPARSE, lse=True, quick="xla"),
    Row("hybrid", NAMED["packed"], BOTH, lse=True, slow="tpu"),
    Row("hybrid", NAMED["last queries"], BOTH, lse=True, quick="xla"),
    *(
        Row("hybrid", case, lse=True, dtype="bfloat16", mode=mode, gradients=False, **{when: "mosaic_gpu"})
        for index, case in enumerate(ON_HOPPER)
        for mode in (0, 1)
        for when in ["quick" if (index, mode) == (0, 1) else "slow"]
    ),
]


@pytest.mark.parametrize("row, impl", cells(ROWS))
def test_equals_the_dense_reference(row: Row, impl: str):
    check(row, impl)

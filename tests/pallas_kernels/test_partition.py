import pytest
from programs import reports

from pallas_kernels.partition import sharding_rule


def test_query_heads_go_with_their_kv_head():
    rule, options = sharding_rule(["BTNH", "BSKH", "BK", "BNT"], [(2, 9, 6, 8), (2, 9, 3, 8), (2, 3), (2, 6, 9)], 3)
    assert rule == (
        "rows whole0 (heads group) whole2, rows whole3 heads whole4, rows heads -> rows (heads group) whole5"
    )
    assert options["group"] == 2
    assert options["need_replication_factors"] == ("whole0", "group", "whole2", "whole3", "whole4", "whole5")


def test_axes_that_are_not_named_stay_whole():
    assert sharding_rule(["BK", "B"], [(2, 3, 5), (2,)], 1) == (
        "rows heads whole0 -> rows",
        {"need_replication_factors": ("whole0",)},
    )


@pytest.mark.parametrize("ops", [("routed",), pytest.param(("hybrid", "dual", "select"), marks=pytest.mark.slow)])
def test_jit_divides_by_rows_and_heads_without_moving_anything(ops):
    """Value and gradients on four devices are those of one, and no device asks another for anything."""
    found = reports("divided_ops.py", *ops, devices=4)
    assert [report["op"] for report in found] == list(ops)
    for report in found:
        assert report["error"] <= 1e-5 and report["collectives"] == []

import jax
import numpy as np
import pytest
from attention_cases import Case, assert_close
from op_table import Row, inputs_of, operands, program, wanted
from tpu_tools import interpreted, quick_jit


@pytest.mark.parametrize("cores", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_neither_copies_nor_cores_race(cores, capfd):
    """Short sweeps, where consecutive query blocks touch the same gradients; an odd number of heads and of blocks."""
    row = Row("hybrid", Case("short", 40, kv_heads=3, lengths=(38,)))
    with interpreted(2, cores=cores, detect_races=True):
        got = jax.block_until_ready(quick_jit(program(row, "tpu"))(*operands(inputs_of(row)[0])))
    assert "RACE DETECTED" not in capfd.readouterr().out
    for name, value in wanted(row).items():
        assert_close(np.asarray(got[name]), value, 1e-5, name)

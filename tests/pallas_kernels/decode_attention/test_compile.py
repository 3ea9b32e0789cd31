"""What the compilers make of the decode kernels: says nothing about numbers (see the interpreted tests) or speed."""

import itertools
from functools import partial

import pytest
from decode_cases import decode_shapes
from tpu_tools import CHIPS, compile_for, lower_for
from triton_compiler import compile_kernels

from pallas_kernels import decode_attention
from pallas_kernels.gpu.tuning import SHARED_MEMORY

SHAPES = {
    "head dim 64": {"head_dim": 64, "groups": 3},
    "head dim 96": {"head_dim": 96},
    "head dim 128": {},
    "head dim 256": {"head_dim": 256, "groups": 2},
    "4 bits, norms": {"bits": 4, "norm": True},
    "8 bits": {"bits": 8},
    "8 queries": {"queries": 8},
    "batch 8": {"batch": 8},
}


@pytest.mark.parametrize("chip", ["v5e"])
def test_lowers_without_libtpu(chip):
    program = partial(decode_attention, impl="tpu")
    assert "tpu_custom_call" in lower_for(chip, program, *decode_shapes(4096, norm=True)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "chip, name",
    [
        *itertools.product(["v5e"], SHAPES),
        *itertools.product(CHIPS.keys() - {"v5e"}, ["head dim 64", "head dim 128", "4 bits, norms"]),
    ],
)
def test_compiles_for_tpu(chip, name):
    compiled = compile_for(chip, partial(decode_attention, impl="tpu"), *decode_shapes(32768, **SHAPES[name]))
    print(f"{chip} {name}: {compiled.memory_analysis().temp_size_in_bytes} bytes of temporaries")


GPU_CASES = [
    *itertools.product((80, 89, 90, 100), (64, 128), ("2 bits",)),
    *itertools.product((90,), (128,), ("4 bits, norms", "8 bits", "8 queries")),
    *itertools.product((80,), (96, 256), ("2 bits",)),
]
GPU_SHAPES = {"2 bits": {}} | SHAPES


@pytest.mark.slow
@pytest.mark.parametrize("capability, head_dim, name", GPU_CASES)
def test_machine_code_keeps_its_registers(capability, head_dim, name, monkeypatch, tmp_path):
    """Stack means spilled registers; eight queries of four heads spill two."""
    shapes = decode_shapes(32768, **GPU_SHAPES[name] | {"head_dim": head_dim})
    program = partial(decode_attention, impl="triton")
    (report,) = compile_kernels(monkeypatch, capability, tmp_path, program, *shapes)
    print(f"sm_{capability} {report}")
    assert report.shared <= SHARED_MEMORY[capability]
    assert report.instructions & {"HMMA", "HGMMA", "UTCHMMA"}, "no tensor cores"
    assert not report.instructions & {"I2F", "I2FP"}, "codes are converted number by number"
    if head_dim in (64, 128):
        assert report.stack <= (8 if name == "8 queries" else 0)


def test_the_programs_of_a_gpu_launch_do_not_depend_on_the_length():
    """One compiled program serves every length that fits the tables."""
    from pallas_kernels.decode_attention.triton import parts_of

    assert parts_of(8, 256) == 65
    assert parts_of(64, 256) == 17
    assert parts_of(2048, 256) == parts_of(8, 1) == 2

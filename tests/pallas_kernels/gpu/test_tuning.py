import itertools

import jax
import jax.numpy as jnp
import pytest
from triton_compiler import compile_kernels

from pallas_kernels import hybrid_attention, routed_attention, select_blocks
from pallas_kernels.gpu import tuning
from pallas_kernels.gpu.tuning import SHARED_MEMORY, Tile, choose_score_tile, choose_tile, shared_bytes

KERNELS = ("forward", "dq", "dkv")


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("head_pad", [16, 64, 128, 256])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_chip_gets_tiles_that_fit(capability, head_pad, itemsize):
    for kernel in KERNELS:
        for block in (16, 128, 384):
            tile = choose_tile(kernel, capability, head_pad, itemsize, block)
            assert block % tile.queries == block % tile.keys == 0
            limit = SHARED_MEMORY.get(capability, tuning.SMALLEST_SHARED_MEMORY)
            assert shared_bytes(kernel, tile, capability, head_pad, itemsize) <= limit


@pytest.mark.parametrize("capability", [80, 89, 90, 100])
def test_every_table_names_every_kernel(capability):
    entries = tuning.table(capability)
    assert set(entries) == set(KERNELS)
    for by_head in entries.values():
        assert {"64", "128"} <= set(by_head)
        for entry in by_head.values():
            Tile(**entry)


def test_a_tile_that_does_not_fit_is_refused_with_numbers(monkeypatch):
    monkeypatch.setattr(tuning, "table", lambda _: {"forward": {"128": vars(Tile(128, 128, 8, 4))}})
    with pytest.raises(ValueError, match=r"needs 294912 bytes of shared memory .* sm_90 gives a program 232448"):
        choose_tile("forward", 90, 128, 2, 128)


def test_chips_without_the_tensor_cores_are_refused():
    with pytest.raises(ValueError, match=r"need compute capability 8.0; this GPU has 7.5. Use impl='xla'"):
        choose_tile("forward", 75, 64, 2, 128)


def training_step(q, k, v, z):
    """Starts every kernel: the pair, dq and dkv."""
    out, pull = jax.vjp(lambda *a: routed_attention(*a, impl="triton"), q, k, v, z)
    return pull(out)


def masked_step(q, k, v, z):
    """The same with lists of blocks."""
    mask = jnp.ones((1, q.shape[2], q.shape[1] // 128, k.shape[1] // 128), jnp.bool_)
    out, pull = jax.vjp(lambda *a: routed_attention(*a, block_mask=mask, impl="triton"), q, k, v, z)
    return pull(out)


def prefill(q, k, v, z):
    return hybrid_attention(q, k, v, (z < 0.5).astype(jnp.int8), impl="triton")


@pytest.mark.parametrize(
    "capability, head_dim, function",
    [
        pytest.param(*case, marks=[] if case == (90, 64, prefill) else pytest.mark.slow)
        for case in itertools.product((80, 89, 90, 100), (64, 96, 128, 256), (prefill, masked_step, training_step))
    ],
)
def test_machine_code_keeps_its_registers(capability, head_dim, function, monkeypatch, tmp_path):
    """Shapes of Llama-3.1-8B at 8192 tokens."""
    q, kv = (jax.ShapeDtypeStruct((1, 8192, heads, head_dim), jnp.bfloat16) for heads in (32, 8))
    z = jax.ShapeDtypeStruct((1, 8), jnp.float32)
    for report in compile_kernels(monkeypatch, capability, tmp_path, function, q, kv, kv, z):
        print(f"sm_{capability} {report}")
        assert report.shared <= SHARED_MEMORY[capability]
        if report.kernel == "compact_kernel":
            continue
        kernel = report.kernel.removesuffix("_kernel")
        head_pad = report.constants["HEAD_PAD"]
        tile = choose_tile(kernel, capability, head_pad, 2, 128)
        assert report.shared <= shared_bytes(kernel, tile, capability, head_pad, 2)
        assert report.instructions & {"HMMA", "HGMMA", "UTCHMMA"}, "no tensor cores"
        if head_dim == 64 or (head_dim, capability) == (128, 90):
            assert report.stack == 0
        assert report.spills <= (0 if head_dim in (64, 128) else 8)
        assert report.stack <= 128


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 89, 90, 100])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scoring_multiplies_on_tensor_cores_without_spills(capability, head_dim, monkeypatch, tmp_path):
    q, k = (jax.ShapeDtypeStruct((1, 8192, heads, head_dim), jnp.bfloat16) for heads in (32, 8))
    (report,) = compile_kernels(monkeypatch, capability, tmp_path, lambda *a: select_blocks(*a, impl="triton"), q, k)
    print(f"sm_{capability} {report}")
    assert report.constants["ROWS"] == choose_score_tile(capability, head_dim, 2, 8).queries
    assert report.instructions & {"HMMA", "HGMMA", "UTCHMMA"}, "no tensor cores"
    assert report.shared <= SHARED_MEMORY[capability]
    assert report.spills == 0 and report.stack <= (0 if capability < 100 else 256)

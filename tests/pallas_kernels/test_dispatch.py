import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch, dual_attention, hybrid_attention, routed_attention
from pallas_kernels.dispatch import choose, nvidia_capability
from pallas_kernels.dual_attention.api import DUAL, ROUTED
from pallas_kernels.hybrid_attention.api import IMPLEMENTATIONS

NAMES = ("reference", "xla", "tpu", "triton", "mosaic_gpu")
EVERYTHING = {name: name for name in NAMES}


class Device:
    def __init__(self, compute_capability):
        self.compute_capability = compute_capability


@pytest.fixture
def on_a_gpu(monkeypatch):
    def set_up(capability):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda *_: [Device(capability)])

    return set_up


@pytest.mark.parametrize(
    "capability, wanted",
    [
        ("7.5", "xla"),
        ("8.0", "triton"),
        ("8.9", "triton"),
        ("9.0", "mosaic_gpu"),
        ("10.0", "triton"),
        ("gfx942", "xla"),
    ],
)
def test_the_chip_decides(capability, wanted, on_a_gpu):
    on_a_gpu(capability)
    assert choose("op", "auto", EVERYTHING) == wanted


def test_a_case_that_the_best_one_does_not_serve_goes_to_the_next(on_a_gpu):
    on_a_gpu("9.0")
    assert choose("op", "auto", EVERYTHING, lambda name: name != "mosaic_gpu") == "triton"
    assert choose("op", "auto", {"xla": "xla", "triton": "triton"}) == "triton"


@pytest.fixture
def chosen(monkeypatch):
    """Which implementation an op starts on a platform; none of them runs."""
    for table in (IMPLEMENTATIONS, DUAL, ROUTED):
        for name in table:
            number = NAMES.index(name)  # a program cannot return a name
            result = (number, None) if table is IMPLEMENTATIONS else number  # hybrid attention: output, log-sum-exp
            monkeypatch.setitem(table, name, lambda *_, result=result: result)

    def run(op, *, block_size, kv_heads=1, groups=1, masked=False, **options):
        q, k = (jnp.ones((1, 2 * block_size, heads, 64), jnp.bfloat16) for heads in (kv_heads * groups, kv_heads))
        if masked:
            options["block_mask"] = jnp.ones((1, kv_heads * groups, 2, 2), jnp.bool_)
        choice = () if op is dual_attention else (jnp.ones((1, kv_heads)),)
        return NAMES[int(op(q, k, k, *choice, block_size=block_size, **options))]

    return run


OPS = pytest.mark.parametrize("op", [hybrid_attention, dual_attention, routed_attention])


@OPS
def test_blocks_that_no_kernel_takes_go_to_xla(op, chosen, on_a_gpu, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert [chosen(op, block_size=size) for size in (256, 128, 64, 16)] == ["tpu", "tpu", "xla", "xla"]
    assert chosen(op, block_size=64, impl="tpu") == "tpu"
    for capability in ("8.0", "9.0"):
        on_a_gpu(capability)
        assert [chosen(op, block_size=size) for size in (16, 48, 24, 8)] == ["triton", "triton", "xla", "xla"]
        assert chosen(op, block_size=24, impl="triton") == "triton"


def test_masks_of_more_heads_than_a_kernel_takes_go_to_xla(chosen, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    choices = [
        chosen(hybrid_attention, block_size=128, groups=groups, masked=masked)
        for groups, masked in ((31, True), (32, True), (32, False))
    ]
    assert choices == ["tpu", "xla", "tpu"]


def test_without_a_gpu_xla_serves_everything():
    assert choose("op", "auto", EVERYTHING) == "xla"
    assert nvidia_capability() is None


def test_a_compile_only_device_counts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch.jax, "config", type("Config", (), {"jax_default_device": Device("8.9")}))
        assert nvidia_capability() == 89

import jax
import pytest

from pallas_kernels import dispatch
from pallas_kernels.dispatch import choose, nvidia_capability

EVERYTHING = {name: name for name in ("reference", "xla", "tpu", "triton", "mosaic_gpu")}


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


def test_without_a_gpu_xla_serves_everything():
    assert choose("op", "auto", EVERYTHING) == "xla"
    assert nvidia_capability() is None


def test_a_compile_only_device_counts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch.jax, "config", type("Config", (), {"jax_default_device": Device("8.9")}))
        assert nvidia_capability() == 89

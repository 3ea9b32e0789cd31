"""The figures of the documentation: drawn by their script, and all of them shown."""

import importlib.util
from types import ModuleType

import pytest
from doc_pages import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs/figures/draw.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name",
    [
        "sparsity.png",
        "cache_bytes.png",
        pytest.param("cache_layout.png", marks=pytest.mark.slow),
        pytest.param("patterns.png", marks=pytest.mark.slow),
    ],
)
def test_figure_is_drawn(script, name: str):
    axes = script.FIGURES[name]().axes
    assert axes and all(axis.lines or axis.images for axis in axes)
    assert (ROOT / "docs/images" / name).is_file()


def test_more_bits_and_more_full_heads_take_more_bytes(script):
    lines = {line.get_label(): line.get_ydata() for line in script.draw_cache_bytes().axes[0].lines}
    names = ["16 bits, every", "8 bits, every", "4 bits, every", "2 bits, every", "2 bits, 70%"]
    longest = [values[-1] for name in names for label, values in lines.items() if label.startswith(name)]
    assert len(longest) == 5 and longest == sorted(longest, reverse=True)

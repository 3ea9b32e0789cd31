"""Small checkpoints on disk for tests: copies of golden models that a test may damage."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = "model.safetensors"


def copy_golden(name: str, directory: Path) -> Path:
    """A checkpoint to damage: the named golden model without its reference outputs."""
    target = directory / name
    target.mkdir()
    for file in ("config.json", WEIGHTS):
        shutil.copyfile(GOLDEN / name / file, target / file)
    return target


def edit_weights(directory: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Rewrites the weights after `change` has altered the dict of tensors in place."""
    tensors = dict(load_file(directory / WEIGHTS))
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Same names, dtypes, shapes and bytes."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )

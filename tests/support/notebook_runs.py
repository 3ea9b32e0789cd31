"""Runs a notebook from top to bottom in a kernel of this Python, with a smaller size cell, and asks it for facts."""

import ast
import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from programs import user_environment

ROOT = Path(__file__).parents[2]


class NotebookRun(NamedTuple):
    facts: dict[str, Any]
    pictures: int
    text: str
    """What the cells printed, errors included."""


def run_notebook(name: str, folder: Path, *, size: str, facts: Mapping[str, str]) -> NotebookRun:
    """Runs `notebooks/NAME.ipynb` in `folder`; `facts` are expressions that are evaluated after the last cell."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    (size_cell,) = (cell for cell in notebook.cells if "size" in cell.metadata.get("tags", ()))
    assert _names(size) == _names(size_cell.source)
    size_cell.source = size
    asked = ", ".join(f"{key!r}: {expression}" for key, expression in facts.items())
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{asked}}}))"))

    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, km=_kernel(folder), timeout=None, shutdown_kernel="immediate", resources=place)
    asyncio.run(client.async_execute(cleanup_kc=True, env=user_environment() | {"PYTHONPATH": str(ROOT)}))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    told = json.loads(notebook.cells[-1].outputs[0].text)
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return NotebookRun(told, pictures, "".join(output.get("text", "") for output in outputs))


def _kernel(folder: Path) -> AsyncKernelManager:
    """A kernel of the Python that runs the tests, whatever kernels are installed for the user."""
    specs = folder / "kernels"
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (specs / "tests").mkdir(parents=True)
    spec = {"argv": command, "display_name": "tests", "language": "python"}
    (specs / "tests" / "kernel.json").write_text(json.dumps(spec))
    manager = KernelSpecManager(kernel_dirs=[str(specs)])
    return AsyncKernelManager(
        kernel_name="tests", kernel_spec_manager=manager, connection_file=str(folder / "connection.json")
    )


def _names(source: str) -> list[str]:
    return [target.id for node in ast.parse(source).body for target in node.targets]

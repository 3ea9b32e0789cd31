"""Notebooks and their texts say the same, and all of them begin the same way."""

import ast

import jupytext
import pytest

from notebooks.sync import FOLDER, notebook_text, sources


def tagged(source, tag):
    return [cell.source for cell in jupytext.read(source).cells if tag in cell.metadata.get("tags", ())]


def test_every_text_has_a_notebook_and_every_notebook_a_text():
    assert len(sources()) == 5
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == [path.stem for path in sources()]


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_notebook_is_made_from_its_text(source):
    stored = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert stored == notebook_text(source), "run `python notebooks/sync.py`"


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_first_cells_are_title_setup_and_size(source):
    cells = jupytext.read(source).cells
    assert [cell.cell_type for cell in cells[:5]] == ["markdown", "markdown", "code", "markdown", "code"]
    assert tagged(source, "setup") == [cells[2].source] == tagged(sources()[0], "setup")
    assert tagged(source, "size") == [cells[4].source]
    assert all(isinstance(node, ast.Assign) for node in ast.parse(cells[4].source).body)


def test_setup_installs_the_package_that_the_library_looks_for():
    from elastic_jax.smollm2 import PACKAGE

    assert f'"{PACKAGE}"' in tagged(sources()[0], "setup")[0]

"""Makes the notebooks from their text: `python notebooks/sync.py` writes NAME.ipynb beside every changed NAME.py."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat

FOLDER = Path(__file__).parent


def sources() -> list[Path]:
    """The texts of the notebooks, in reading order."""
    return sorted(FOLDER.glob("[0-9][0-9]_*.py"))


def notebook_text(source: Path) -> str:
    """The notebook of a text as JSON: no outputs, and nothing that differs from one run or machine to the next."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = {
        "jupytext": {"formats": "ipynb,py:percent"},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"


def main() -> None:
    """Writes what changed, and says so."""
    for source in sources():
        target, text = source.with_suffix(".ipynb"), notebook_text(source)
        if not target.is_file() or target.read_text(encoding="utf-8") != text:
            target.write_text(text, encoding="utf-8")
            print(f"wrote {target.name}")


if __name__ == "__main__":
    main()

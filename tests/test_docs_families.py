"""The page of model families has the table that the code gives."""

import importlib.util

from doc_pages import ROOT


def test_the_table_of_families_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("write", ROOT / "docs/families/write.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.written(page) == page, "run python docs/families/write.py"

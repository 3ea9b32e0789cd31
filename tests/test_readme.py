"""The examples of the README that are marked `<!-- test -->` run as they stand, and its table names every verb."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import AS_IT_IS, blocks, text_of
from programs import user_environment

from elastic_jax.cli import find_verbs

README = text_of("README.md")
MARKED = [block for block in blocks("README.md") if block.mark == AS_IT_IS]
PROGRAM = {"python": [sys.executable, "-c"], "sh": ["sh", "-ec"]}


@pytest.mark.parametrize("block", MARKED, ids=[block.language for block in MARKED])
def test_marked_example_runs(block, tmp_path: Path):
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    environment = user_environment() | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*PROGRAM[block.language], block.text], capture_output=True, text=True, cwd=tmp_path, env=environment,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if block.language == "python":
        assert "Paris" in done.stdout
    else:
        assert (tmp_path / "runs" / "routing.png").is_file()
        assert (tmp_path / "runs" / "smollm2-elastic" / "model.safetensors").is_file()
        assert "MSR" in done.stderr


def test_both_kinds_of_example_are_marked():
    assert sorted(block.language for block in MARKED) == ["python", "sh"]


def test_verbs_in_the_table_are_the_verbs():
    table = set(re.findall(r"^\| `([a-z -]+)` \|", README, re.MULTILINE))
    assert table == {name.replace(".", " ") for name in find_verbs()}

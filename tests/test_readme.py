"""The examples of the README that are marked `<!-- test -->` run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/*.md")))]
MARKED = re.findall(r"<!-- test -->\n```(\w+)\n(.*?)```", README, re.DOTALL)
PROGRAM = {"python": [sys.executable, "-c"], "sh": ["sh", "-ec"]}


@pytest.mark.parametrize(("language", "text"), MARKED, ids=[language for language, _ in MARKED])
def test_marked_example_runs(language: str, text: str, tmp_path: Path):
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*PROGRAM[language], text], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stderr
    if language == "python":
        assert "Paris" in done.stdout
    else:
        assert (tmp_path / "runs" / "routing.png").is_file()
        assert (tmp_path / "runs" / "smollm2-elastic" / "model.safetensors").is_file()
        assert "MSR" in done.stderr


def test_both_kinds_of_example_are_marked():
    assert sorted(language for language, _ in MARKED) == ["python", "sh"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_verbs_in_the_table_are_the_verbs():
    from elastic_jax.cli import find_verbs

    table = set(re.findall(r"^\| `([a-z -]+)` \|", README, re.MULTILINE))
    assert table == {name.replace(".", " ") for name in find_verbs()}

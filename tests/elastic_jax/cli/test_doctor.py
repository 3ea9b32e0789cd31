"""The report on this machine, and what it says of machines that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from elastic_jax.cli import main
from elastic_jax.cli.examination import (
    backends,
    base_requirements,
    examine,
    folder_findings,
    wrong_pairs,
    wrong_versions,
)
from pallas_kernels import hybrid_attention

REQUIREMENTS = base_requirements(["jax>=0.11.2,<0.13", "ghost>=1", "gguf>=0.18; extra == 'demo'"])


def test_this_environment_has_every_declared_version() -> None:
    assert [finding for finding in examine().findings if "installed" in finding.text] == []


def test_a_version_outside_the_range_and_a_missing_package_are_problems_with_their_cure() -> None:
    assert "gguf" not in REQUIREMENTS
    found = wrong_versions(REQUIREMENTS, {"jax": "0.10.0", "ghost": None})
    assert [finding.level for finding in found] == ["problem", "problem"]
    assert "jax 0.10.0 is installed; want jax<0.13,>=0.11.2" in found[0].text
    assert "pip install 'ghost>=1'" in found[1].text


@pytest.mark.parametrize(("jaxlib", "problems"), [("0.12.0", 0), ("0.12.0.1", 0), ("0.11.2", 1), (None, 0)])
def test_jax_and_jaxlib_come_in_pairs(jaxlib: str | None, problems: int) -> None:
    assert len(wrong_pairs({"jax": "0.12.0.1", "jaxlib": jaxlib})) == problems


def test_a_backend_that_runs_here_runs_and_one_that_does_not_is_refused() -> None:
    q = k = jnp.ones((1, 16, 1, 16))
    for backend in backends():
        if backend.name in ("tpu", "mosaic_gpu") and not backend.runs:
            assert backend.reason
            continue

        def attend(impl: str = backend.name) -> jax.Array:
            modes = jnp.zeros((1, 1), jnp.int32)
            return hybrid_attention(q, k, k, modes, sink_blocks=1, local_blocks=1, block_size=16, impl=impl)

        if backend.runs:
            assert jnp.isfinite(attend()).all()
        else:
            with pytest.raises(RuntimeError):
                attend()


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    assert folder_findings("cache", tmp_path / "new" / "folder") == []
    (tmp_path / "file").write_text("")
    (finding,) = folder_findings("cache", tmp_path / "file" / "folder")
    assert finding.level == "problem"
    assert str(tmp_path / "file") in finding.text


def test_the_verb_prints_text_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "xla: runs here" in text
    assert "tpu: not here" in text
    assert text.rstrip().endswith("Nothing needs fixing.")
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"]
    assert report["order"] == ["xla"]
    assert report["versions"]["jax"] == jax.__version__

"""Runs that an earlier version began and was stopped in go on to the end that it would have brought them to."""

from pathlib import Path

import pytest
from resume_runs import COMMANDS, EXPECTED, KEPT, RECORDS, STORED, content, copy_to, differences

from elastic_jax import cli

TOLERANCE = 1e-5
"""Sums depend on the kind of processor; on the one that made the runs `golden/make_runs.py check` finds none."""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A copy of the stopped runs; it is the current folder, as the stored settings hold relative paths."""
    folder = copy_to(tmp_path)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stopped_run_goes_on_to_the_same_end(name: str, here: Path, capsys):
    record = here / name / ("metrics.jsonl" if name == "run" else "journal.jsonl")
    before = record.read_text()
    assert cli.main(list(COMMANDS[name])) == 0, capsys.readouterr().err
    whole_lines = before.rpartition("\n")[0]  # a journal ends in a line that a kill cut short
    assert record.read_text().startswith(whole_lines), "begun anew"
    for file in KEPT[name]:
        wanted = content(STORED / EXPECTED / name / file)
        found = list(differences(content(here / name / file), wanted, tolerance=TOLERANCE))
        assert not found, f"{file}: " + "\n".join(found[:20])


def test_what_is_stored_was_stopped_half_way():
    assert sorted(path.name for path in (STORED / "run" / "checkpoints").iterdir()) == ["5", "6"]
    assert len(content(STORED / EXPECTED / "run" / "metrics.jsonl")) == 20
    for name, records in RECORDS.items():
        begun = (STORED / name / "journal.jsonl").read_text()
        assert 1 < begun.count("\n") <= records and not begun.endswith("\n")
        assert len(content(STORED / EXPECTED / name / "journal.jsonl")["records"]) == records

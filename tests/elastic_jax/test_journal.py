import json
import os
import resource
import subprocess
import sys

import pytest

from elastic_jax import journal
from elastic_jax.errors import DataError, InUseError
from elastic_jax.files import FileLock
from elastic_jax.journal import Journal, LineFile

SETTINGS = {"seed": 0, "lengths": (16, 32)}


def test_what_was_appended_is_there_after_reopening(tmp_path):
    path = tmp_path / "deep" / "journal.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.append({"a/1": {"x": 0.1}, "a/2": {"x": 1e-9}})
    with Journal(path, SETTINGS) as journal:
        assert len(journal) == 2
        assert journal["a/1"] == {"x": 0.1} and journal["a/2"] == {"x": 1e-9}
        assert "a/3" not in journal
        journal.append({"a/3": 3})
    with Journal(path, SETTINGS) as journal:
        assert journal["a/3"] == 3


def test_appended_records_are_on_disk_before_the_file_is_closed(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", SETTINGS)
    journal.append({"a": 1})
    assert json.loads(journal.path.read_text().splitlines()[-1]) == {"key": "a", "value": 1}
    journal.close()


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_line_cut_short_by_a_crash_is_done_again(tmp_path, cut):
    path = tmp_path / "journal.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.append({"a": 1})
        journal.append({"b": 2})
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, SETTINGS) as journal:
        assert "a" in journal and "b" not in journal
        journal.append({"b": 2})
    with Journal(path, SETTINGS) as journal:
        assert journal["a"] == 1 and journal["b"] == 2


def test_a_header_cut_short_starts_afresh(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"settings": {"se')
    with Journal(path, SETTINGS) as journal:
        assert len(journal) == 0
    with Journal(path, SETTINGS) as journal:
        assert len(journal) == 0


def test_changed_settings_are_refused_by_name_and_the_file_is_left_alone(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.append({"a": 1})
    before = path.read_bytes()
    with pytest.raises(DataError, match="seed: the journal has 0, this run 1"):
        Journal(path, SETTINGS | {"seed": 1})
    with pytest.raises(DataError, match="blocks: the journal has None, this run 2"):
        Journal(path, SETTINGS | {"blocks": 2})
    assert path.read_bytes() == before


def test_a_damaged_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, SETTINGS) as journal:
        journal.append({"a": 1})
        journal.append({"b": 2})
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "not json", lines[2]]) + "\n")
    with pytest.raises(DataError, match="line 2 is no journal record"):
        Journal(path, SETTINGS)


def test_a_full_disk_is_named_and_what_was_finished_is_safe(tmp_path):
    path, (soft, hard) = tmp_path / "journal.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        message = f"{path} cannot be written: .*is safe.*make room and give the same command again"
        with pytest.raises(DataError, match=message), Journal(path, SETTINGS) as journal:
            journal.append({"a": 1})
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9, hard))
            journal.append({"b": "x" * 99})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Journal(path, SETTINGS) as journal:
        assert dict(journal.items()) == {"a": 1}


def test_a_file_that_is_no_journal_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="line 1 is no journal record"):
        Journal(path, SETTINGS)
    assert path.read_text() == "a,b\n1,2\n"


def test_a_second_process_is_refused_and_cuts_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    program = f"from elastic_jax.journal import Journal\nJournal({str(path)!r}, {SETTINGS!r})"
    with Journal(path, SETTINGS) as journal:
        journal.append({"a": 1})
        before = path.read_bytes() + b'{"key": "b"'  # this process is in the middle of a line
        path.write_bytes(before)
        second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert f"journal.jsonl is in use by process {os.getpid()} on " in second.stderr.splitlines()[-1]
        with pytest.raises(InUseError, match=f"process {os.getpid()}"):
            Journal(path, SETTINGS)
        assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_dies_with_its_process(tmp_path):
    path = tmp_path / "journal.jsonl"
    program = (
        f"import os\nfrom elastic_jax.journal import Journal\njournal = Journal({str(path)!r}, {SETTINGS!r})\n"
        "journal.append({'a': 1})\nos.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    with Journal(path, SETTINGS) as journal:
        assert journal["a"] == 1


def test_a_file_of_lines_goes_on_where_it_was_stopped_and_appears_whole(tmp_path):
    path = tmp_path / "made.jsonl"
    with LineFile(path, SETTINGS) as lines:
        lines.add("a", {"text": "\N{LATIN SMALL LETTER U WITH DIAERESIS}"})
        lines.add("b", None, "too long")
        with pytest.raises(InUseError):
            LineFile(path, SETTINGS)
    assert not path.exists()
    with LineFile(path, SETTINGS) as lines:
        assert lines.done == {"a": None, "b": "too long"}
        lines.add("c", {"text": "c"})
        assert lines.finish() == 2
    assert path.read_text(encoding="utf-8") == '{"text": "\N{LATIN SMALL LETTER U WITH DIAERESIS}"}\n{"text": "c"}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_lines_that_another_process_finished_just_now_are_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"

    def lock(*place):
        path.write_text("finished")
        return FileLock(*place)

    monkeypatch.setattr(journal, "FileLock", lock)
    with pytest.raises(DataError, match="is there already"):
        LineFile(path, SETTINGS)
    assert path.read_text() == "finished" and list(tmp_path.iterdir()) == [path]

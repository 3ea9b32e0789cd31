"""Runs that an earlier version began and was stopped in go on to the end that it would have brought them to."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from elastic_jax import cli

TOLERANCE = 1e-5
"""Sums depend on the kind of processor; on the one that made the runs there is no difference."""
STORED = Path(__file__).parent / "golden" / "resume"
EXPECTED = "expected"
_MODEL = ("--model", "model", "--dtype", "float32")
COMMANDS = {
    "run": ("train", "router", "--config", "train.yaml"),
    "needles": (
        *("eval", "needles", *_MODEL, "--haystack", "texts", "--tasks", "passkey,kv", "--lengths", "256,320"),
        *("--depths", "0,100", "--per-cell", "1", "--batch-tokens", "320", "--cache-bits", "4", "--out", "needles"),
    ),
    "report": (
        *("eval", "router", *_MODEL, "--texts", "texts", "--code", "texts", "--lengths", "256", "--probes", "2"),
        *("--windows", "1", "--scored-tokens", "64", "--batch-tokens", "256", "--out", "report"),
    ),
}
"""What continues each of the stored folders, given in a copy of `golden/resume`."""
RECORDS = {"needles": 32, "report": 24}
"""Samples in the journal of each finished evaluation."""
KEPT = {
    "run": ("metrics.jsonl", "evaluation.jsonl", "router/router.safetensors", "router/router_config.json"),
    "needles": ("journal.jsonl", "results.json"),
    "report": ("journal.jsonl", "results.json"),
}
"""Files of a finished run that are kept, below `expected`, to compare with."""
_OF_THE_MACHINE = {
    *("seconds", "tokens_per_second", "flops_per_second", "mfu", "device_memory_peak"),
    *("program", "prefill", "prefill_s"),
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A copy of the stopped runs; it is the current folder, as the stored settings hold relative paths."""
    folder = Path(shutil.copytree(STORED, tmp_path / "resume"))
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
        found = list(differences(content(here / name / file), wanted))
        assert not found, f"{file}: " + "\n".join(found[:20])


def test_what_is_stored_was_stopped_half_way():
    assert sorted(path.name for path in (STORED / "run" / "checkpoints").iterdir()) == ["5", "6"]
    assert len(content(STORED / EXPECTED / "run" / "metrics.jsonl")) == 20
    for name, records in RECORDS.items():
        begun = (STORED / name / "journal.jsonl").read_text()
        assert 1 < begun.count("\n") <= records and not begun.endswith("\n")
        assert len(content(STORED / EXPECTED / name / "journal.jsonl")["records"]) == records


def content(file: Path) -> Any:
    """What a kept file says, without times and versions; a journal by key, as records come in any order."""
    if file.suffix == ".safetensors":
        return {name: value.tolist() for name, value in load_file(file).items()}
    if file.suffix == ".json":
        return _lasting(json.loads(file.read_text()))
    lines = [_lasting(json.loads(line)) for line in file.read_text().splitlines()]
    if file.name != "journal.jsonl":
        return lines
    records = {line["key"]: line["value"] for line in lines[1:] if not line["key"].startswith("prefill/")}
    return lines[0] | {"records": records}


def differences(found: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Places at which two contents differ; fractions may differ by `TOLERANCE`, absolute or relative."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        for name in wanted:
            yield from differences(found[name], wanted[name], f"{where}/{name}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        for index, pair in enumerate(zip(found, wanted, strict=True)):
            yield from differences(*pair, f"{where}[{index}]")
    elif isinstance(wanted, float) and isinstance(found, float):
        if not math.isclose(found, wanted, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{where}: {found!r}, was {wanted!r} ({abs(found - wanted):.2g})"
    elif type(found) is not type(wanted) or found != wanted:
        yield f"{where}: {found!r:.300}, was {wanted!r:.300}"


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if name not in _OF_THE_MACHINE}
    return [_lasting(item) for item in value] if isinstance(value, list) else value

"""The stopped runs in `golden/resume`: the commands that continue them, and what they must leave behind.

`golden/make_runs.py` made them and kept what became of them; `test_resume_golden.py` continues copies and compares.
"""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

STORED = Path(__file__).parents[1] / "golden" / "resume"
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


def copy_to(folder: Path) -> Path:
    """A copy of the stopped runs; commands are given in it."""
    return Path(shutil.copytree(STORED, folder / "resume"))


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


def differences(found: Any, wanted: Any, *, tolerance: float, where: str = "") -> Iterator[str]:
    """Places at which two contents differ; fractions may differ by the tolerance, absolute or relative."""
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        for name in wanted:
            yield from differences(found[name], wanted[name], tolerance=tolerance, where=f"{where}/{name}")
    elif isinstance(wanted, list) and isinstance(found, list) and len(found) == len(wanted):
        for index, pair in enumerate(zip(found, wanted, strict=True)):
            yield from differences(*pair, tolerance=tolerance, where=f"{where}[{index}]")
    elif isinstance(wanted, float) and isinstance(found, float):
        if not math.isclose(found, wanted, rel_tol=tolerance, abs_tol=tolerance):
            yield f"{where}: {found!r}, was {wanted!r} ({abs(found - wanted):.2g})"
    elif type(found) is not type(wanted) or found != wanted:
        yield f"{where}: {found!r:.300}, was {wanted!r:.300}"


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(item) for name, item in value.items() if name not in _OF_THE_MACHINE}
    return [_lasting(item) for item in value] if isinstance(value, list) else value

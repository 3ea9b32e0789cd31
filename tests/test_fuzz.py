"""Every parser of an outside file, on damaged files: bounded time and memory, an error of ours or none, no stray write.

`FUZZ_CASES=20000 pytest -m slow tests/test_fuzz.py` tries as many damaged copies of each kind.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mutations import deep_json, mutate_bytes, mutate_json, survives
from outside_kind import Kind
from outside_models import MODELS, render
from outside_records import RECORDS
from outside_runs import RUNS

from elastic_jax.settings import load_settings
from train.config import RouterTrainConfig

QUICK = 25
MANY = int(os.environ.get("FUZZ_CASES", "2000"))
KINDS: dict[str, Kind] = {**MODELS, **RECORDS, **RUNS}
TRIED: Counter[Kind] = Counter()
"""Damaged files that were tried, by kind."""


@pytest.fixture(autouse=True, scope="module")
def number_of_inputs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tells at the end how many inputs there were."""
    yield
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{TRIED.total()} damaged inputs of {len(TRIED)} kinds were tried")


def damage(kind: Kind, valid: bytes, rng: random.Random) -> bytes:
    """One damaged copy of the content of a file."""
    if kind.form == "bytes" or rng.random() < 0.3:
        return mutate_bytes(valid, rng)
    if kind.form == "json":
        return json.dumps(mutate_json(json.loads(valid), rng)).encode()
    if kind.form == "yaml":
        return yaml.safe_dump(mutate_json(yaml.safe_load(valid), rng)).encode()
    lines = valid.decode().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(mutate_json(json.loads(lines[at]), rng), ensure_ascii=rng.random() < 0.5)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def fuzz(kind: Kind, folder: Path, cases: int) -> int:
    """Parses `cases` damaged files; returns how many were accepted all the same."""
    target = folder / "target"
    target.mkdir()
    kind.write(target)
    file = target / kind.damaged
    valid = file.read_bytes()
    names = sorted(path.name for path in target.iterdir())
    assert survives(lambda: kind.parse(target)), "the file is not valid to begin with"
    accepted = 0
    for case in range(min(cases, kind.most)):
        file.write_bytes(damage(kind, valid, random.Random(case)))
        TRIED[kind] += 1
        try:
            accepted += survives(lambda: kind.parse(target))
        except BaseException as error:
            error.add_note(f"case {case} of {kind.damaged}")
            raise
        assert sorted(path.name for path in folder.iterdir()) == ["target"], f"case {case} wrote outside"
        assert sorted(path.name for path in target.iterdir()) == names, f"case {case} left files behind"
    return accepted


@pytest.mark.parametrize("text", ["{{ " + "(" * 100_000, "{% if 1 %}" * 20_000, "{{ 1" + "+1" * 50_000 + " }}"])
def test_templates_nested_deeper_than_the_stack(text: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(text)
    assert not survives(lambda: render(tmp_path))


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_give_a_clear_error(name: str, tmp_path: Path) -> None:
    assert fuzz(KINDS[name], tmp_path, QUICK) < QUICK or KINDS[name].tolerant


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", KINDS)
def test_many_damaged_files_give_a_clear_error(name: str, tmp_path: Path) -> None:
    assert fuzz(KINDS[name], tmp_path, MANY) < MANY or KINDS[name].tolerant


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.form != "bytes"])
def test_text_nested_deeper_than_the_stack(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    kind.write(tmp_path)
    (tmp_path / kind.damaged).write_text(deep_json())
    assert not survives(lambda: kind.parse(tmp_path)) or kind.tolerant


def test_settings_that_repeat_themselves_a_billion_times(tmp_path: Path) -> None:
    laughs = ["a0: &a0 [lol]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "run.yaml").write_text("\n".join(laughs))
    assert not survives(lambda: load_settings(RouterTrainConfig, tmp_path / "run.yaml"))

"""Strict settings: what a file may say, and what the refusals tell."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.errors import ConfigError
from elastic_jax.settings import (
    FilePath,
    check_filled,
    check_least,
    expand_home,
    find_config,
    load_settings,
    settings_dict,
    settings_yaml,
)


@dataclass(frozen=True)
class Optimizer:
    peak: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    kind: Literal["adamw", "sgd"] = "adamw"

    def __post_init__(self) -> None:
        if self.peak <= 0:
            raise ConfigError(f"peak is {self.peak}; want more than 0.")


@dataclass(frozen=True)
class Settings:
    steps: int = 10
    name: str = "run"
    limit: int | None = None
    remat: bool = True
    lengths: tuple[int, ...] = (1024,)
    shares: dict[str, float] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    bits: Literal[2, 4, 8, 16] = 16


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def test_a_file_fills_the_fields_that_it_names(yaml_file):
    path = yaml_file(
        "steps: 3\noptimizer: {peak: 2e-4, betas: [0.8, 0.9]}\nshares: {code: 1}\nname: '007'\nlengths: [1, 2]\n"
    )
    assert load_settings(Settings, path) == Settings(
        steps=3,
        name="007",
        lengths=(1, 2),
        shares={"code": 1.0},
        optimizer=Optimizer(peak=2e-4, betas=(0.8, 0.9)),
    )


@dataclass(frozen=True)
class Places:
    out: FilePath | None = None
    home: FilePath = "~"
    files: tuple[FilePath, ...] = ()
    named: dict[str, FilePath] = field(default_factory=dict)
    prompt: str = ""


@dataclass(frozen=True)
class Outer:
    places: Places = field(default_factory=Places)


def test_a_tilde_is_the_home_directory_in_every_path_and_in_nothing_else(yaml_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = "places: {out: ~/out, files: [~/a, b~], named: {x: ~/x}, prompt: ~/hi}\n"
    read = load_settings(Outer, yaml_file(text)).places
    files, named = ("/home/me/a", "b~"), {"x": "/home/me/x"}
    assert read == Places("/home/me/out", "/home/me", files, named, "~/hi")
    assert expand_home(Outer(read)) == Outer(read)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepz: 3\n", "unknown key stepz. Did you mean steps?"),
        ("optimizer: {peek: 3}\n", "unknown key optimizer.peek. Did you mean optimizer.peak?"),
        ("steps: many\n", "steps is 'many'; want a whole number"),
        ("steps: 2.5\n", "steps is 2.5; want a whole number"),
        ("steps: true\n", "steps is True; want a whole number"),
        ("remat: 1\n", "remat is 1; want true or false"),
        ("name: 3\n", "name is 3; want text"),
        ("optimizer: 3\n", "optimizer is 3; want a mapping"),
        ("optimizer: {peak: true}\n", "optimizer.peak is True; want a finite number"),
        ("optimizer: {peak: .nan}\n", "optimizer.peak is nan; want a finite number"),
        ("optimizer: {peak: -.inf}\n", "optimizer.peak is -inf; want a finite number"),
        (f"shares: {{a: 1{'0' * 400}}}\n", "shares.a is 1000"),
        ("optimizer: {kind: adam}\n", "optimizer.kind is 'adam'; want one of adamw, sgd"),
        ("optimizer: {betas: [1]}\n", "optimizer.betas has 1 values; want 2"),
        ("optimizer: {peak: -1}\n", "optimizer: peak is -1.0; want more than 0"),
        ("lengths: 3\n", "lengths is 3; want a list"),
        ("lengths: [1, x]\n", "lengths.1 is 'x'; want a whole number"),
        ("shares: {a: b}\n", "shares.a is 'b'; want a finite number"),
        ("bits: 3\n", "bits is 3; want one of"),
        ("bits: 4.0\n", "bits is 4.0; want one of"),
        ("limit: [1]\n", "limit is [1]; want a whole number"),
        ("steps: 1\nsteps: 2\n", "key 'steps' is given twice"),
        ("- 1\n", "holds a list; want `key: value` lines"),
        ("a: [\n", "cannot be read as YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
    ],
)
def test_refusals_name_the_file_and_the_key(yaml_file, text, says):
    path = yaml_file(text)
    with pytest.raises(ConfigError) as refusal:
        load_settings(Settings, path)
    assert str(path) in str(refusal.value)
    assert says in str(refusal.value)


def test_missing_file_is_named_with_what_exists():
    with pytest.raises(ConfigError, match="no configuration file nowhere.yaml"):
        find_config("nowhere.yaml")


@given(
    st.builds(
        Settings,
        steps=st.integers(),
        name=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])),
        limit=st.none() | st.integers(),
        remat=st.booleans(),
        lengths=st.lists(st.integers()).map(tuple),
        shares=st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False, allow_infinity=False)),
        optimizer=st.builds(Optimizer, peak=st.floats(min_value=1e-9, max_value=1e9)),
    )
)
def test_written_settings_read_back_the_same(tmp_path_factory, settings):
    path = tmp_path_factory.mktemp("settings") / "saved.yaml"
    path.write_text(settings_yaml(settings), encoding="utf-8")
    assert load_settings(Settings, path) == settings


def test_settings_dict_is_plain():
    assert settings_dict(Settings())["optimizer"] == {"peak": 1e-3, "betas": [0.9, 0.95], "kind": "adamw"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(steps=1), "steps is 1; want at least 2"),
        (Settings(limit=1), "limit is 1; want at least 2"),
        (Settings(lengths=()), r"lengths is \[\]; want one or more, each at least 2"),
        (Settings(lengths=(2, 1)), r"lengths is \[2, 1\]; want one or more, each at least 2"),
    ],
)
def test_what_is_too_small_is_refused_by_name(settings, message):
    check_least(Settings(steps=2, limit=None, lengths=(2, 3)), 2, "steps", "limit", "lengths")
    with pytest.raises(ConfigError, match=message):
        check_least(settings, 2, "steps", "limit", "lengths")


def test_an_empty_list_is_refused_by_name():
    check_filled(Settings(), "lengths", "name")
    with pytest.raises(ConfigError, match="lengths is empty; want at least one"):
        check_filled(Settings(lengths=()), "name", "lengths")

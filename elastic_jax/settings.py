"""Strict settings: frozen dataclasses filled from YAML files, nothing unknown accepted.

Every field of a settings class has a default; a field that the user must give defaults to None and is checked by the
code that needs it, so that a file and a command line can each give a part.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Union

import yaml

from elastic_jax.config.checks import fits, named
from elastic_jax.errors import ConfigError, shown

_IS_PATH = "path"
FilePath = Annotated[str, _IS_PATH]
"""Type of a setting that names a file or folder: `~` at its beginning is the home directory."""
DEEPEST = 30
"""Levels of nesting in a YAML file."""


def load_settings[T](cls: type[T], path: str | Path | None = None) -> T:
    """Builds `cls` from its defaults and the YAML file.

    Args:
        cls: a frozen dataclass; nested dataclasses are nested mappings in the file.
        path: a YAML file, or the name of a shipped recipe (see `find_config`); None for defaults only.

    Raises:
        ConfigError: file and key of the first unknown key, wrong type or refused value.
    """
    if path is None:
        return cls()
    file = find_config(path)
    return expand_home(_build(cls, read_yaml(file), str(file), ()))


def check_numbers(settings: Any) -> None:
    """Raises `ConfigError` for the first number, in any group of settings, that is NaN or infinite."""
    _check_numbers(settings_dict(settings), ())


def check_least(settings: Any, least: float, *names: str) -> None:
    """Raises `ConfigError` for the first named setting that is below `least`.

    A list must hold one number or more, none of them below `least`; None may stand for a default.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, tuple):
            if not value or min(value) < least:
                raise ConfigError(f"{name} is {list(value)}; want one or more, each at least {least}.")
        elif value is not None and value < least:
            raise ConfigError(f"{name} is {value}; want at least {least}.")


def check_filled(settings: Any, *names: str) -> None:
    """Raises `ConfigError` for the first named setting that is an empty list."""
    for name in names:
        if not getattr(settings, name):
            raise ConfigError(f"{name} is empty; want at least one.")


def check_seed(seed: object, bits: int = 31) -> None:
    """Raises `ConfigError` unless `seed` is a whole number from 0 to 2**bits - 1; samplers take those of 31 bits."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or not 0 <= int(seed) < 2**bits:
        raise ConfigError(f"seed is {shown(seed)}; want a whole number from 0 to 2**{bits} - 1.")


def expand_home[T](settings: T) -> T:
    """The settings with `~` replaced by the home directory in every `FilePath` of every group."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    changes = {}
    for field in dataclasses.fields(settings):  # pyrefly: ignore[bad-argument-type]
        value = getattr(settings, field.name)
        expanded = expand_home(value) if dataclasses.is_dataclass(value) else _expanded(value, hints[field.name])
        if expanded != value:
            changes[field.name] = expanded
    return dataclasses.replace(settings, **changes) if changes else settings  # pyrefly: ignore[bad-specialization]


def _expanded(value: Any, hint: Any) -> Any:
    kind, arms = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, str) and kind is Annotated and _IS_PATH in hint.__metadata__:
        return os.path.expanduser(value)
    if kind in (Union, types.UnionType) and value is not None:
        return next((new for arm in arms if (new := _expanded(value, arm)) != value), value)
    if kind is tuple and isinstance(value, tuple):
        return tuple(_expanded(item, arms[0]) for item in value)
    if kind is dict and isinstance(value, dict):
        return {key: _expanded(item, arms[1]) for key, item in value.items()}
    return value


def find_config(name: str | Path) -> Path:
    """The YAML file at `name`, or the shipped recipe of that name (`"router_smollm2"`)."""
    name = os.path.expanduser(name)
    if Path(name).is_file():
        return Path(name)
    root = shipped_configs()
    recipes = {str(file.relative_to(root).with_suffix("")): file for file in root.rglob("*.yaml")}
    recipe = str(name).removesuffix(".yaml")
    if recipe in recipes:
        return recipes[recipe]
    raise ConfigError(f"no configuration file {name}{_nearest(recipe, recipes)} Shipped recipes: {_listed(recipes)}.")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read safely; repeated keys are refused."""
    try:
        values = _StrictLoader(path.read_text(encoding="utf-8-sig")).get_single_data()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds a {type(values).__name__}; want `key: value` lines.")
    return values


def settings_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain values, ready for YAML or JSON; `load_settings` reads them back."""
    return {field.name: _plain(getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def settings_yaml(settings: Any) -> str:
    """The settings as the YAML text that would produce them."""
    return yaml.safe_dump(settings_dict(settings), sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without repeated keys, and no deeper than settings are."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {DEEPEST}", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = next((key for key in keys if keys.count(key) > 1), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def shipped_configs() -> Path:
    """The folder of shipped recipes and model shapes."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _build[T](cls: type[T], values: Mapping[str, Any], origin: str, path: tuple[str, ...]) -> T:
    hints = _hints(cls)
    for key in values:
        if key not in hints:
            raise _unknown(origin, (*path, str(key)), hints)
    arguments = {key: _convert(value, hints[key], origin, (*path, key)) for key, value in values.items()}
    try:
        return cls(**arguments)
    except ConfigError as error:
        where = f"{origin}: {'.'.join(path)}" if path else origin
        raise ConfigError(f"{where}: {error}") from error


def _convert(value: Any, hint: Any, origin: str, path: tuple[str, ...]) -> Any:
    """The value of a field from what YAML gives for it: mappings, lists, and numbers that YAML 1.1 reads as text."""

    def refuse(want: str) -> ConfigError:
        return ConfigError(f"{origin}: {'.'.join(path)} is {shown(value)}; want {want}.")

    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise refuse(f"a mapping with the keys {_listed(_hints(hint))}")
        return _build(hint, value, origin, path)
    if kind in (Union, types.UnionType):
        return _convert_union(value, arguments, origin, path)
    if kind is tuple:
        if not isinstance(value, list | tuple):
            raise refuse("a list")
        return _convert_sequence(value, arguments, origin, path)
    if kind is dict:
        if not isinstance(value, Mapping):
            raise refuse("a mapping")
        return {str(key): _convert(item, arguments[1], origin, (*path, str(key))) for key, item in value.items()}
    if hint is float and isinstance(value, str):
        with suppress(ValueError):
            value = float(value)  # 1e-4
    if not fits(value, hint):
        raise refuse(named(hint))
    return float(value) if hint is float else value


def _convert_union(value: Any, arms: tuple[Any, ...], origin: str, path: tuple[str, ...]) -> Any:
    if value is None and type(None) in arms:
        return None
    problems = []
    for arm in arms:
        if arm is not type(None):
            try:
                return _convert(value, arm, origin, path)
            except ConfigError as error:
                problems.append(error)
    raise problems[0]


def _convert_sequence(value: Sequence[Any], arms: tuple[Any, ...], origin: str, path: tuple[str, ...]) -> Any:
    open_ended = len(arms) == 2 and arms[1] is Ellipsis
    if not open_ended and len(value) != len(arms):
        raise ConfigError(f"{origin}: {'.'.join(path)} has {len(value)} values; want {len(arms)}.")
    each = [arms[0]] * len(value) if open_ended else arms
    numbered = enumerate(zip(value, each, strict=True))
    return tuple(_convert(item, arm, origin, (*path, str(i))) for i, (item, arm) in numbered)


def _unknown(origin: str, path: tuple[str, ...], known: Iterable[str]) -> ConfigError:
    known = list(known)
    nearest = _nearest(path[-1], known, prefix=path[:-1])
    return ConfigError(f"{origin}: unknown key {'.'.join(path)}{nearest} Known keys: {_listed(known)}.")


def _nearest(name: str, known: Iterable[str], prefix: tuple[str, ...] = ()) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f". Did you mean {'.'.join([*prefix, close[0]])}?" if close else "."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _check_numbers(value: Any, path: tuple[str, ...]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_numbers(item, (*path, str(key)))
    elif isinstance(value, list):
        for item in value:
            _check_numbers(item, path)
    elif isinstance(value, float) and not fits(value, float):
        raise ConfigError(f"{'.'.join(path)} is {value}; want {named(float)}.")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return settings_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value

"""Checks of configuration values that come from outside: types, finite numbers, sizes that can be meant."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any

from elastic_jax.errors import ConfigError, shown

MOST_LAYERS = 1000
"""Several times the deepest models known; what a damaged file asks for is refused before work in proportion to it."""


def check_positive(what: str, **values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ConfigError(f"{what} {name} is {value!r}; want a number above 0.")


LARGEST = 2**31 - 1
"""Of any whole number in a configuration: array sizes and positions are 32-bit."""


def check_fields(what: str, config: Any) -> None:
    """Raises `ConfigError` for the first field of a dataclass whose value does not have the declared type."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _fits(value, hints[field.name]):
            raise ConfigError(f"{what} {field.name} is {shown(value)}; want {_named(hints[field.name])}.")


def check_count(what: str, value: object, largest: int = LARGEST) -> None:
    """Raises `ConfigError` unless `value` is a whole number from 1 to `largest`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
        raise ConfigError(f"{what} is {shown(value)}; want a whole number from 1 to {largest}.")


def _fits(value: Any, hint: Any) -> bool:
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, arm) for arm in arguments)
    if kind is typing.Literal:
        return isinstance(value, str) and value in arguments
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, arguments[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return isinstance(value, type(None) if hint is None else hint)


def _named(hint: Any) -> str:
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(_named(arm) for arm in arguments)
    if kind is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if kind is tuple:
        return "a list of numbers"
    names = {float: "a finite number", int: f"a whole number up to {LARGEST}", bool: "true or false", str: "text"}
    return "null" if hint is type(None) else names.get(hint, getattr(hint, "__name__", str(hint)))

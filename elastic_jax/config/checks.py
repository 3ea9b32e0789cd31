"""Checks of configuration values that come from outside: types, finite numbers, sizes that can be meant."""

from __future__ import annotations

import dataclasses
import numbers
import sys
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
        if not fits(value, hints[field.name]):
            raise ConfigError(f"{what} {field.name} is {shown(value)}; want {named(hints[field.name])}.")
        if hints[field.name] in (int, int | None) and value is not None and abs(value) > LARGEST:
            raise ConfigError(f"{what} {field.name} is {shown(value)}; want a whole number up to {LARGEST}.")


def check_whole(what: str, least: int, **values: object) -> None:
    """Raises `ConfigError` unless each value is a whole number, of Python or of another library, of `least` or more."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
            raise ConfigError(f"{what} {name} is {shown(value)}; want a whole number, {least} or more.")


def check_count(what: str, value: object, largest: int = LARGEST) -> None:
    """Raises `ConfigError` unless `value` is a whole number from 1 to `largest`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= largest:
        raise ConfigError(f"{what} is {shown(value)}; want a whole number from 1 to {largest}.")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field declares; numbers must be finite, and true is no number."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return any(fits(value, arm) for arm in arguments)
    if kind is typing.Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if kind is tuple:
        return isinstance(value, tuple) and all(fits(item, arguments[0]) for item in value)
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, hint)


def named(hint: Any) -> str:
    """What an error message wants for a field of this type."""
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        return " or ".join(named(arm) for arm in arguments)
    if kind is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if kind is tuple:
        return "a list of numbers"
    names = {float: "a finite number", int: "a whole number", bool: "true or false", str: "text, in quotes"}
    return "null" if hint is type(None) else names.get(hint, getattr(hint, "__name__", str(hint)))

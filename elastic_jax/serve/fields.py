"""Fields of a JSON body, each checked when it is read; what is wrong becomes an HTTP error."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any

from elastic_jax.errors import shown

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that gets an error instead of an answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ):
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
        self._param, self._code = param, code

    def body(self) -> dict[str, Any]:
        """The error as OpenAI's clients expect it."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self._param, "code": self._code}}


class Fields:
    """A JSON object whose names are known; null stands for a field that is not given."""

    def __init__(self, body: object, known: Collection[str], ignored: Collection[str]):
        """Refuses what is no object, and names outside `known` and `ignored` with the nearest known one."""
        if not isinstance(body, dict):
            raise Refused(400, f"the body is {shown(body)}; want a JSON object.")
        for name in body:
            if name not in known and name not in ignored:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise Refused(400, f"there is no field {shown(name)}.{hint}", param=name)
        self._given = {name: value for name, value in body.items() if value is not None}

    def get(self, name: str) -> Any:
        """A field as it is; None where it is not given."""
        return self._given.get(name)

    def refusal(self, name: str, want: str) -> Refused:
        """The error for a field that is not what is wanted."""
        if name not in self._given:
            return Refused(400, f"{name} is missing; want {want}.", param=name)
        return Refused(400, f"{name} is {shown(self._given[name])}; want {want}.", param=name)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        value = self._given.get(name, default)
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if not (plain and low <= value <= high and math.isfinite(value)):
            raise self.refusal(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole[D](self, name: str, default: D, low: int, high: int) -> int | D:
        """A whole number from `low` to `high`, or the default where it is not given."""
        if name not in self._given:
            return default
        value = self._given[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refusal(name, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        """True or false; false where it is not given."""
        value = self._given.get(name, False)
        if not isinstance(value, bool):
            raise self.refusal(name, "true or false")
        return value

    def strings(self, name: str, most: int) -> tuple[str, ...]:
        """One string or a list of up to `most`, none of them empty."""
        value = self._given.get(name, [])
        strings = [value] if isinstance(value, str) else value
        if not isinstance(strings, list) or len(strings) > most:
            raise self.refusal(name, f"a string or a list of up to {most}")
        if not all(isinstance(text, str) and text for text in strings):
            raise self.refusal(name, "strings of one character or more")
        return tuple(strings)

    def refuse_unless(self, allowed: Mapping[str, Collection[Any]]) -> None:
        """Refuses fields of features that are not there, unless they ask for nothing."""
        for name, values in allowed.items():
            if name in self._given and self._given[name] not in values:
                raise self.refusal(name, "it left out, for this server does not support it")

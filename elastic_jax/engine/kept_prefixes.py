"""Prefixes that are read and kept: they are read once, and give up their pages when requests need them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from elastic_jax.engine.admission import demand_of
from elastic_jax.engine.page_pool import Reservation
from elastic_jax.engine.requests import Prefix, Request
from elastic_jax.engine.slots import Slots
from elastic_jax.errors import shown

_LOG = logging.getLogger(__name__)


class KeptPrefixes:
    """The prefixes whose keys and values are kept outside of the rows."""

    def __init__(self, slots: Slots):
        self._slots = slots
        self._kept: list[Prefix] = []

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._kept)

    def read(self, prefix: Prefix, row: int, reservation: Reservation, step: int) -> None:
        """Reads a prefix in a row that is free again afterwards. What goes wrong is kept in `prefix.error`."""
        try:
            prompt = self._slots.prefill(prefix.tokens, prefix.routing, prefix.router_bias)
            self._slots.insert(row, prompt, demand_of(prefix), reservation)
            prefix.kept, prefix.logits_1V = self._slots.keep(row, prompt), prompt.logits_1V
            prefix.mode_LK, prefix.used = prompt.mode_LK, step
            self._kept.append(prefix)
        except Exception as error:
            prefix.error = error
            _LOG.warning("a prefix of %d tokens could not be read: %s", len(prefix.tokens), shown(error))
        finally:
            self._slots.release(row)
            self._slots.end(reservation)

    def evict(self, prefix: Prefix) -> None:
        """Releases the pages of a kept prefix."""
        self._kept.remove(prefix)
        self._slots.forget(prefix.kept)
        prefix.kept, prefix.logits_1V = None, None

    def reserve(self, job: Request | Prefix, *, give_way: bool) -> Reservation | None:
        """Reserves what a request or prefix needs; None where it has to wait.

        With `give_way`, kept prefixes that it does not use are evicted for it, the longest unused first.
        """
        mode, own = None if job.routing is None else job.routing[:, 0], None
        if isinstance(job, Request) and job.prefix is not None:
            mode, own = job.prefix.mode_LK, job.prefix
        while True:
            reservation = self._slots.reserve(demand_of(job), mode)
            others = [prefix for prefix in self._kept if prefix is not own]
            if reservation is not None or not give_way or not others:
                return reservation
            self.evict(min(others, key=lambda prefix: prefix.used))

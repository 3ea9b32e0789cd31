"""Random schedules of everything that may happen to rows: each computes, bit for bit, what it computes alone."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from tiny import random_ids, tiny_model

from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.paged_slots import PagedSlots
from elastic_jax.engine.slots import Demand, Slots
from elastic_jax.kv_cache import CacheConfig

ENGINE = EngineConfig(slots=3, max_length=160, step_tokens=4, flush_rows=1)
PACKED = CacheConfig(bits=2, group=32, residual=8, outliers=2, outlier_store=6, untraced_layers=1)
WIDTH = ENGINE.step_tokens
FULL_POOL, POOL = 3 * 4 * 4, 30
"""Pages that three rows of full heads need at most, and fewer: some have to wait."""


@dataclasses.dataclass
class Life:
    """What one row has read: its prompt, then pieces of tokens, with the logits after each."""

    prompt: object
    pieces: list
    logits: list

    def copy(self):
        return Life(self.prompt, list(self.pieces), list(self.logits))


@dataclasses.dataclass
class Family:
    """Rows of one request, and what they reserved."""

    rows: list
    total: int
    reservation: object


class World:
    """A set of rows and a model of what they should hold."""

    def __init__(self, slots, prompts, seed):
        self.slots, self.prompts = slots, prompts
        self.rng = np.random.default_rng(seed)
        self.free = list(range(ENGINE.slots))
        self.lives, self.ended = {}, []
        self.families, self.kept = [], []
        self.counts = dict.fromkeys(("admit", "read", "refuse", "flush", "copy", "restore", "end", "wait"), 0)

    def play(self, operations):
        for _ in range(operations):
            name = self.rng.choice(
                ["admit", "read", "flush", "copy", "end", "keep", "forget"], p=[0.12, 0.6, 0.12, 0.07, 0.04, 0.03, 0.02]
            )
            getattr(self, name)()
            self.check_pages()
        while self.families:
            self.end()
        while self.kept:
            self.forget()

    def admit(self):
        rows = int(self.rng.integers(1, 3))
        if rows > len(self.free):
            return
        kept = self.rng.choice(len(self.kept)) if self.kept and self.rng.random() < 0.5 else None
        prompt = self.prompts[self.rng.integers(len(self.prompts))] if kept is None else self.kept[kept][0]
        total = min(prompt.length + int(self.rng.integers(10, 90)), ENGINE.max_length)
        demand = Demand(prompt.length, total, rows, 0 if kept is None else prompt.length)
        reservation = self.slots.reserve(demand, prompt.mode_LK)
        if reservation is None:
            self.counts["wait"] += 1
            return
        taken = [self.free.pop(self.rng.integers(len(self.free))) for _ in range(rows)]
        if kept is None:
            self.slots.insert(taken[0], prompt, demand, reservation)
            self.counts["admit"] += 1
        else:
            self.slots.restore(taken[0], self.kept[kept][1], reservation)
            self.counts["restore"] += 1
        self.lives[taken[0]] = Life(prompt, [], [])
        for row in taken[1:]:
            self.slots.copy(taken[0], row)
            self.lives[row] = Life(prompt, [], [])
        self.families.append(Family(taken, total, reservation))

    def read(self):
        pieces, accepted = {}, {}
        for family in self.families:
            for row in family.rows:
                left = family.total - int(self.slots.lengths[row])
                most = min(WIDTH, self.slots.room(row), left)
                if most > 0 and self.rng.random() < 0.8:
                    length = int(self.rng.integers(1, most + 1))
                    pieces[row] = self.rng.integers(0, 64, length).tolist()
                    accepted[row] = length if self.rng.random() < 0.5 else int(self.rng.integers(0, length))
        logits, _ = self.slots.read(pieces, {}, width=WIDTH)
        logits = np.asarray(logits)
        for row, count in accepted.items():
            self.slots.count(row, count)
            self.counts["read"] += count
            self.counts["refuse"] += len(pieces[row]) - count
            if count:
                self.lives[row].pieces.append(pieces[row][:count])
                self.lives[row].logits.append(logits[row, :count])

    def flush(self):
        due = [row for family in self.families for row in family.rows if self.slots.room(row) == 0]
        if due:
            self.slots.flush([self.rng.choice(due)])
            self.counts["flush"] += 1

    def copy(self):
        families = [family for family in self.families if len(family.rows) > 1]
        if families:
            rows = families[self.rng.integers(len(families))].rows
            source, target = self.rng.permutation(rows)[:2]
            self.ended.append(self.lives[target])
            self.slots.copy(source, target)
            self.lives[target] = self.lives[source].copy()
            self.counts["copy"] += 1

    def end(self):
        if not self.families:
            return
        family = self.families.pop(self.rng.integers(len(self.families)))
        for row in family.rows:
            self.slots.release(row)
            self.free.append(row)
            self.ended.append(self.lives.pop(row))
        self.slots.end(family.reservation)
        self.counts["end"] += 1

    def keep(self):
        prompt = self.prompts[self.rng.integers(len(self.prompts))]
        demand = Demand(prompt.length, prompt.length)
        reservation = self.slots.reserve(demand, prompt.mode_LK) if self.free else None
        if reservation is not None:
            row = self.free[0]
            self.slots.insert(row, prompt, demand, reservation)
            self.kept.append((prompt, self.slots.keep(row, prompt)))
            self.slots.release(row)
            self.slots.end(reservation)

    def forget(self):
        if self.kept:
            self.slots.forget(self.kept.pop(self.rng.integers(len(self.kept)))[1])

    def check_pages(self):
        """Every page is free or held, once for each table that names it; promises can be kept."""
        if isinstance(self.slots, PagedSlots):
            pool = self.slots.pool
            tables = [self.slots._table, *(kept.table_LKJ for _, kept in self.kept)]
            named = np.concatenate([table[table >= 0] for table in tables])
            np.testing.assert_array_equal(pool._holders, np.bincount(named, minlength=pool.size))
            assert sorted(pool._free) == np.flatnonzero(pool._holders == 0).tolist()
            assert pool.available >= 0 and all(family.reservation.left >= 0 for family in self.families)


def alone(slots, life):
    """Logits of a row that nothing runs beside and that never reads what it must give back."""
    demand = Demand(life.prompt.length, ENGINE.max_length)
    reservation = slots.reserve(demand, life.prompt.mode_LK)
    slots.insert(1, life.prompt, demand, reservation)
    logits = []
    for piece in life.pieces:
        if slots.room(1) == 0:
            slots.flush([1])
        logits.append(slots.read({1: piece}, {}, width=WIDTH)[0])
        slots.count(1, len(piece))
    slots.release(1)
    slots.end(reservation)
    return [np.asarray(x)[1, : len(piece)] for x, piece in zip(logits, life.pieces, strict=True)]


@pytest.fixture(scope="module")
def kinds():
    """For both caches: rows that share a pool too small for all, rows for one at a time, and prompts."""
    model, rng = tiny_model(), np.random.default_rng(0)

    def make(kind, cache, pages):
        if kind is Slots:
            return Slots(model, ENGINE, cache)
        page = PagedSlots(model, ENGINE, cache).page_bytes
        return PagedSlots(model, dataclasses.replace(ENGINE, pool_mib=(pages + 0.5) * page / 2**20), cache)

    made = {}
    for kind, cache in ((PagedSlots, PACKED), (Slots, CacheConfig())):
        slots = make(kind, cache, POOL)
        prompts = [
            slots.prefill(np.asarray(random_ids((n,), seed=n)).tolist(), rng.integers(0, 2, (2, 1, 2)))
            for n in (3, 20, 37, 39, 40, 41, 64, 71, 72, 90)
        ]
        made[kind] = slots, make(kind, cache, FULL_POOL), prompts
    return made


def play(kinds, kind, seed, operations=60):
    slots, single, prompts = kinds[kind]
    world = World(slots, prompts, seed)
    world.play(operations)
    for life in world.ended:
        for got, wanted in zip(life.logits, alone(single, life), strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert not slots.lengths.any() and len(world.free) == ENGINE.slots
    if kind is PagedSlots:
        assert slots.pool.free == slots.pool.available == slots.pool.size
    return world.counts


def play_many(kinds, kind, seeds):
    totals = Counter()
    for i, seed in enumerate(seeds):
        totals.update(play(kinds, kind, seed))
        if i % 25 == 24:
            print(f"{kind.__name__}: {i + 1} schedules, {dict(totals)}", flush=True)
    return totals


@pytest.mark.parametrize(("kind", "schedules"), [(PagedSlots, 24), (Slots, 6)])
def test_rows_compute_what_they_compute_alone_and_nothing_leaks(kinds, kind, schedules):
    counts = play_many(kinds, kind, range(schedules))
    happened = {name for name, count in counts.items() if count}
    assert happened == set(counts) - ({"flush", "wait"} if kind is Slots else set()), counts


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "schedules"), [(PagedSlots, 800), (Slots, 200)])
def test_a_thousand_schedules(kinds, kind, schedules):
    counts = play_many(kinds, kind, range(1000, 1000 + schedules))
    assert min(counts[name] for name in ("read", "refuse", "copy")) > 0

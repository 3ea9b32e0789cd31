"""From gates to an order of all heads: by what training says, then by what held-out samples say of hard sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.journal import Journal
from elastic_jax.model import from_params
from elastic_jax.routing import Gates
from train.heads.samples import Batch
from train.heads.step import Frozen, mean_kl, rows_of, scored_states

REACH = 8
"""How far from the edge of a set exchanges are looked for, in places of the order."""


class HeldOut:
    """Held-out samples, and how far a hard set of heads is from full attention on them.

    What is measured goes into a journal, so that a run that is killed goes on where it was.
    """

    def __init__(
        self,
        model: ModelConfig,
        frozen: Frozen,
        batches: Sequence[Batch],
        journal: Journal,
        place: Callable[[Batch], Batch] = lambda batch: batch,
    ):
        """The longest batches come first, as they tell sets apart best."""
        self._host = sorted(batches, key=lambda batch: -batch.input_ids.shape[1])
        self._batches = [place(batch) for batch in self._host]
        self._frozen, self._journal = frozen, journal
        self._full_states: dict[int, jax.Array] = {}

        @jax.jit
        def states(frozen: Frozen, batch: Batch, z_LK: jax.Array) -> jax.Array:
            model_of = from_params(model, frozen)
            return scored_states(model_of, batch, Gates(rows_of(z_LK, batch.input_ids.shape[0])))

        @jax.jit
        def distance(frozen: Frozen, full_BPD: jax.Array, states_BPD: jax.Array, weights_BP: jax.Array) -> jax.Array:
            return mean_kl(from_params(model, frozen), full_BPD, states_BPD, weights_BP)

        @jax.jit
        def greedy(frozen: Frozen, full_BPD: jax.Array) -> jax.Array:
            return from_params(model, frozen).head(full_BPD).argmax(-1)

        self._states, self._distance, self._greedy = states, distance, greedy
        self._ones_LK = jnp.ones((model.num_layers, model.num_kv_heads), jnp.float32)

    def answered(self) -> float:
        """Share of the scored tokens that full attention predicts."""
        right = total = 0.0
        for index, batch in enumerate(self._host):
            places = np.minimum(batch.positions + 1, batch.input_ids.shape[1] - 1)
            labels = np.take_along_axis(batch.input_ids, places, axis=1)
            found = np.asarray(self._greedy(self._frozen, self._full(index)))
            right += float(((found == labels) * batch.weights).sum())
            total += float(batch.weights.sum())
        return right / max(total, 1.0)

    def kl(self, full_LK: np.ndarray, *, at_most: float = np.inf) -> float:
        """Mean KL of a set of full heads, bool `[L, K]`, over the batches; infinity once it is sure to exceed
        `at_most`."""
        total = 0.0
        name = np.packbits(full_LK.ravel()).tobytes().hex()
        for index, batch in enumerate(self._batches):
            key = f"{int(self._host[index].group)}/{name}/{index}"  # samples of all groups share the journal
            if key not in self._journal:
                states = self._states(self._frozen, batch, jnp.asarray(full_LK, jnp.float32))
                apart = self._distance(self._frozen, self._full(index), states, batch.weights)
                self._journal.append({key: float(apart)})
            total += self._journal[key] / len(self._batches)
            if total > at_most:
                return np.inf
        return total

    def _full(self, index: int) -> jax.Array:
        if index not in self._full_states:
            self._full_states[index] = self._states(self._frozen, self._batches[index], self._ones_LK)
        return self._full_states[index]


def first_order(gates_LK: np.ndarray, opened_LK: np.ndarray) -> np.ndarray:
    """Numbers of all heads `[L * K]`, the most needed first: by the last gate, then by how long it stayed open."""
    return np.lexsort((-opened_LK.ravel(), -np.round(gates_LK.ravel(), 1)))


def head_set(order: np.ndarray, count: int, shape: tuple[int, int]) -> np.ndarray:
    """The first `count` heads of an order as bool `[L, K]`."""
    chosen = np.zeros(order.size, bool)
    chosen[order[:count]] = True
    return chosen.reshape(shape)


def settled(
    order: np.ndarray,
    count: int,
    shape: tuple[int, int],
    held_out: HeldOut,
    tries: int,
    on_try: Callable[[int, float], None],
) -> np.ndarray:
    """The order after exchanges between the first `count` heads and the rest, each of which lowers the KL of that set.

    Exchanges of the least needed head inside and the most needed outside are tried first. `on_try(done, kl)` is called
    after each of the `tries` with the KL so far.
    """
    order = order.copy()
    best = held_out.kl(head_set(order, count, shape))
    reach = min(REACH, count, order.size - count)
    pairs = sorted(((a, b) for a in range(reach) for b in range(reach)), key=lambda pair: (sum(pair), pair))
    refused: set[tuple[int, int]] = set()
    done = 0
    while done < tries:
        untried = [
            (inside, outside)
            for a, b in pairs
            for inside, outside in [(order[count - 1 - a], order[count + b])]
            if (inside, outside) not in refused
        ]
        if not untried:
            break
        inside, outside = untried[0]
        changed = order.copy()
        places = np.flatnonzero(order == inside)[0], np.flatnonzero(order == outside)[0]
        changed[list(places)] = outside, inside
        # the newcomer is the last of the set and the other the first outside: nothing else is known of them
        changed[:count] = np.append(np.delete(changed[:count], places[0]), outside)
        changed[count:] = np.insert(np.delete(changed[count:], places[1] - count), 0, inside)
        kl = held_out.kl(head_set(changed, count, shape), at_most=best)
        if kl < best:
            order, best = changed, kl
        refused.add((inside, outside))
        refused.add((outside, inside))
        done += 1
        on_try(done, best)
    return order


def ranks(order: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Rank of every head, int32 `[L, K]`, from an order of their numbers."""
    rank = np.empty(order.size, np.int32)
    rank[order] = np.arange(order.size)
    return rank.reshape(shape)

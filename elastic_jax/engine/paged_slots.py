"""Rows over the quantised cache: packed groups lie in pages of one pool, which rows of one origin share.

A page is written once, when its group is packed, and never again: a sparse head whose oldest group falls out of its
window drops that page and takes another for the newest group. So a page may be shared by beams and prefixes without
ever being copied, and is free when its last holder is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from elastic_jax.config import HeadMode
from elastic_jax.engine import programs
from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.page_pool import ABSENT, PagePool, Reservation, pages_needed, stored_groups
from elastic_jax.engine.slots import Demand, Prompt, Slots
from elastic_jax.errors import ConfigError
from elastic_jax.generation import Cache, decode_modes
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.pages import page_bytes, quantized_tokens, sparse_groups
from elastic_jax.kv_cache.quantized import QuantizedCache
from elastic_jax.kv_cache.size import most_that_fits
from elastic_jax.model import ElasticForCausalLM


@dataclass(frozen=True)
class KeptRow:
    """A row at the end of its prompt: its exact tokens and outliers are copied, its packed groups are held."""

    own: programs.Row
    table_LKJ: np.ndarray
    mode_LK: np.ndarray
    quantized: int
    length: int


class PagedSlots(Slots):
    """See `Slots`. A row is due when `residual + group` of its tokens are exact, and is packed before it reads on, so
    a row is always packed at the same lengths, whichever other rows run."""

    def __init__(self, model: ElasticForCausalLM, engine: EngineConfig, cache: CacheConfig):
        config = model.config
        L, B, K, H = config.num_layers, engine.slots, config.num_kv_heads, config.head_dim
        spec = config.attention_spec
        self._extent = sparse_groups(cache, spec)
        groups = max(_groups(engine.max_length, cache), 1)
        self.page_bytes = page_bytes(H, cache)
        wanted = L * B * K * groups
        pages = wanted if engine.pool_mib is None else min(int(engine.pool_mib * 2**20) // self.page_bytes, wanted)
        if pages < 1:
            raise ConfigError(
                f"engine pool_mib is {engine.pool_mib}, less than one page of {self.page_bytes} bytes; want up to "
                f"{wanted * self.page_bytes / 2**20:.1f}, which {B} rows of {engine.max_length} tokens fill."
            )
        self.pool = PagePool(pages)
        self._table = np.full((B, L, K, groups), ABSENT, np.int32)
        self._mode = np.zeros((B, L, K), np.int8)
        self._quantized = np.zeros(B, np.int32)
        self._reservation = [Reservation(0)] * B
        dtype = model.embed.embedding[...].dtype
        state = QuantizedCache.blank(
            (L, B, K, H),
            ring=cache.residual + cache.group,  # full rows are flushed before they read on
            groups=groups,
            pages=pages,
            dtype=dtype,
            config=cache,
            spec=spec,
        )
        super().__init__(model, engine, cache, state)

    @property
    def most_drafts(self) -> int:
        return min(super().most_drafts, self.cache.residual)

    def room(self, row: int) -> int:
        return int(self._quantized[row]) + self.cache.residual + self.cache.group - int(self.lengths[row])

    def flush(self, rows: Sequence[int]) -> None:
        most = self.engine.rows_per_flush
        pages_RLK = np.zeros((most, *self._mode.shape[1:]), np.int32)
        padded = np.zeros(most, np.int32)
        for i, row in enumerate(rows):
            group = int(self._quantized[row]) // self.cache.group
            self._drop_expired(row, group)
            pages_RLK[i] = self._table[row, :, :, group] = self.pool.take(pages_RLK.shape[1:], self._reservation[row])
            padded[i] = row
        self.state = programs.flush_rows(self._counted(), padded, np.int32(len(rows)), pages_RLK)
        self._quantized[list(rows)] += self.cache.group

    def _drop_expired(self, row: int, group: int) -> None:
        """Drops the group of sparse heads that no query sees any more when `group` is packed."""
        sinks, ring = self._extent
        if group - ring < sinks:
            return
        table_LK = self._table[row, :, :, group - ring]
        sparse_LK = self._mode[row] == HeadMode.SPARSE
        self.pool.drop(table_LK[sparse_LK], self._reservation[row])
        table_LK[sparse_LK] = ABSENT

    def refusal(self, demand: Demand, mode_LK: np.ndarray | None) -> str | None:
        need = self._need(demand, mode_LK)
        if need <= self.pool.size:
            return None
        new_tokens = demand.total - demand.prompt
        fits = most_that_fits(new_tokens, lambda n: self._fits(demand.prompt, n, demand, mode_LK))
        advice = f"With this prompt, max_new_tokens up to {fits} fits."
        if not fits:
            longest = most_that_fits(demand.prompt, lambda n: self._fits(n, 1, demand, mode_LK))
            advice = f"A prompt of up to {longest} tokens fits."
        worst = "" if mode_LK is not None else " if every head is full, as routers may decide"
        return (
            f"{demand.prompt} prompt tokens + {new_tokens} new ones need {need * self.page_bytes} "
            f"bytes of pages{worst}; the pool has {self.pool.size * self.page_bytes}. {advice} Or start the engine "
            "with a larger pool_mib."
        )

    def _fits(self, prompt: int, new: int, demand: Demand, mode_LK: np.ndarray | None) -> bool:
        asked = replace(demand, prompt=prompt, total=prompt + new, prefix=min(demand.prefix, prompt))
        return self._need(asked, mode_LK) <= self.pool.size

    def reserve(self, demand: Demand, mode_LK: np.ndarray | None) -> Reservation | None:
        return self.pool.reserve(self._need(demand, mode_LK))

    def share(self, demand: Demand, mode_LK: np.ndarray | None) -> float:
        return max(super().share(demand, mode_LK), self._need(demand, mode_LK) / self.pool.size)

    def _need(self, demand: Demand, mode_LK: np.ndarray | None) -> int:
        mode_LK = np.full(self._mode.shape[1:], HeadMode.FULL) if mode_LK is None else mode_LK
        mode_LK = decode_modes(mode_LK, self.cache, self.config)
        prompt, total, prefix = (_groups(n, self.cache) for n in (demand.prompt, demand.total, demand.prefix))
        return pages_needed(mode_LK, prompt, total, self._extent, rows=demand.rows, shared=prefix)

    def insert(self, row: int, prompt: Prompt, demand: Demand, reservation: Reservation) -> None:
        mode_LK = decode_modes(prompt.mode_LK, self.cache, self.config)
        reservation.left = self._need(demand, mode_LK)
        groups = _groups(prompt.length, self.cache)
        stored_LKJ = stored_groups(mode_LK, groups, self._extent)
        table_LKJ = np.full(self._table.shape[1:], ABSENT, np.int32)
        table_LKJ[..., : stored_LKJ.shape[-1]][stored_LKJ] = self.pool.take((int(stored_LKJ.sum()),), reservation)
        # first, so that `release` returns the pages where the program fails
        self._set(row, prompt.length, groups * self.cache.group, mode_LK, table_LKJ, reservation)
        self.state = programs.put_prompt_quantized(
            self._counted(), prompt.kv, np.int32(prompt.length), np.int32(row), mode_LK, table_LKJ
        )

    def copy(self, source: int, target: int) -> None:
        self.pool.share(self._table[source])
        self.pool.drop(self._table[target], self._reservation[target])
        super().copy(source, target)
        self._set(
            target,
            int(self.lengths[source]),
            int(self._quantized[source]),
            self._mode[source],
            self._table[source],
            self._reservation[source],
        )

    def keep(self, row: int, prompt: Prompt) -> KeptRow:
        self.pool.share(self._table[row])
        own = programs.take_row(self.state, np.int32(row))
        table_LKJ, mode_LK = self._table[row].copy(), self._mode[row].copy()
        return KeptRow(own, table_LKJ, mode_LK, int(self._quantized[row]), int(self.lengths[row]))

    def restore(self, row: int, kept: KeptRow, reservation: Reservation) -> None:
        self.pool.share(kept.table_LKJ)
        self._set(row, kept.length, kept.quantized, kept.mode_LK, kept.table_LKJ, reservation)
        self.state = programs.put_row(self._counted(), np.int32(row), kept.own)

    def forget(self, kept: KeptRow) -> None:
        self.pool.drop(kept.table_LKJ)

    def release(self, row: int) -> None:
        self.pool.drop(self._table[row], self._reservation[row])
        self._set(row, 0, 0, np.zeros_like(self._mode[row]), np.full_like(self._table[row], ABSENT), Reservation(0))

    def end(self, reservation: Reservation) -> None:
        self.pool.end(reservation)

    def warm_up(self, kept: KeptRow) -> None:
        super().warm_up(kept)
        self.flush([])
        self.restore(0, kept, Reservation(0))
        self.release(0)

    def _set(
        self,
        row: int,
        length: int,
        quantized: int,
        mode_LK: np.ndarray,
        table_LKJ: np.ndarray,
        reservation: Reservation,
    ) -> None:
        self.lengths[row], self._quantized[row] = length, quantized
        self._mode[row], self._table[row], self._reservation[row] = mode_LK, table_LKJ, reservation

    def _counted(self) -> Cache:
        state = super()._counted()
        assert isinstance(state, QuantizedCache)
        return replace(state, quantized=jnp.asarray(self._quantized.copy()))


def _groups(tokens: int, cache: CacheConfig) -> int:
    return int(quantized_tokens(np.array([tokens]), cache)[0]) // cache.group

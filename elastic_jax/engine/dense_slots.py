"""Rows over the plain cache: every row has room for the longest request, so nothing is shared and nothing waits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from elastic_jax.engine import programs
from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.page_pool import Reservation
from elastic_jax.engine.slots import Demand, Prompt, Slots
from elastic_jax.generation import bucket
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.dense import DenseCache
from elastic_jax.model import ElasticForCausalLM


class DenseSlots(Slots):
    """See `Slots`."""

    def __init__(self, model: ElasticForCausalLM, engine: EngineConfig, cache: CacheConfig):
        config = model.config
        shape = (config.num_layers, engine.slots, config.num_kv_heads, config.head_dim)
        capacity, dtype = bucket(engine.max_length), model.embed.embedding[...].dtype
        state = DenseCache.blank(shape, capacity=capacity, dtype=dtype, spec=config.attention_spec)
        super().__init__(model, engine, cache, state)

    def room(self, row: int) -> int:
        return self.engine.max_length - int(self.lengths[row])

    def flush(self, rows: Sequence[int]) -> None:
        raise AssertionError(f"rows {rows} of a plain cache have nothing to pack.")

    def refusal(self, demand: Demand, mode_LK: np.ndarray | None) -> str | None:
        return None

    def reserve(self, demand: Demand, mode_LK: np.ndarray | None) -> Reservation | None:
        return Reservation(0)

    def insert(self, row: int, prompt: Prompt, demand: Demand, reservation: Reservation) -> None:
        length, mode_LK = np.int32(prompt.length), self.cache_mode(prompt)
        self.state = programs.put_prompt_dense(self._counted(), prompt.kv, length, np.int32(row), mode_LK)
        self.lengths[row] = prompt.length

    def keep(self, row: int, prompt: Prompt) -> Prompt:
        return prompt

    def restore(self, row: int, kept: Prompt, reservation: Reservation) -> None:
        self.insert(row, kept, Demand(kept.length, kept.length), reservation)

    def forget(self, kept: Prompt) -> None:
        pass

    def release(self, row: int) -> None:
        self.lengths[row] = 0

    def end(self, reservation: Reservation) -> None:
        pass

"""The rows of an engine on the device: filled with prompts, read on, copied, released. Requests are not known here.

Lengths are kept on the host and handed to every program. A refused draft is therefore one that is not counted: what it
wrote lies after the row's last token, is never read, and is overwritten by the next tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from elastic_jax.engine import programs
from elastic_jax.engine.config import EngineConfig
from elastic_jax.engine.page_pool import Reservation
from elastic_jax.errors import NumericsError
from elastic_jax.generation import Cache, bucket, decode_modes, not_finite, prefill
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.kv_cache.dense import DenseCache
from elastic_jax.kv_cache.pages import tree_bytes
from elastic_jax.layout import pad_rows
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.routing import gates_from
from elastic_jax.sampling import RowSampling


@dataclass(frozen=True)
class Prompt:
    """A prompt that was read: keys and values `[L, 1, T, K, H]`, logits `[1, V]` after it, head modes `[L, K]`."""

    kv: tuple[jax.Array, jax.Array]
    length: int
    logits_1V: jax.Array
    mode_LK: np.ndarray


@dataclass(frozen=True)
class Demand:
    """What a request asks for: tokens of its prompt and in all, the rows that continue it, and the tokens among them
    that a stored prefix holds."""

    prompt: int
    total: int
    rows: int = 1
    prefix: int = 0


class Slots:
    """A fixed number of rows over one plain cache. Every method leaves the other rows as they are.

    Each row has room for the longest request, so nothing is reserved, shared or packed: `PagedSlots` does that.
    """

    def __init__(self, model: ElasticForCausalLM, engine: EngineConfig, cache: CacheConfig, state: Cache | None = None):
        self.engine, self.cache, self.config = engine, cache, model.config
        self.state = _blank_rows(model, engine) if state is None else state
        self.lengths = np.zeros(engine.slots, np.int32)
        self._model = model
        self._graph, self._params = nnx.split(model)

    @property
    def nbytes(self) -> int:
        """Bytes of the cache of all rows, allocated once."""
        return tree_bytes(self.state)

    @property
    def most_drafts(self) -> int:
        """Drafts that a step can verify for one row."""
        return self.engine.step_tokens - 1

    def prefill(self, prompt: Sequence[int], routing: Any = None, router_bias: float = 0.0) -> Prompt:
        """Reads a prompt, padded to its bucket; None as routing lets the routers decide."""
        ids, lengths = map(jnp.asarray, pad_rows([prompt], bucket(len(prompt))))
        gates = gates_from(routing, self.config, 1)
        kv, logits_1V, routed = prefill(self._model, ids, lengths, gates, jnp.float32(router_bias))
        return Prompt(kv, len(prompt), logits_1V, np.asarray(routed.mode)[:, 0])

    def read(
        self, chunks: Mapping[int, Sequence[int]], drawings: Mapping[int, RowSampling], *, width: int
    ) -> tuple[jax.Array, jax.Array]:
        """Reads a few tokens of some rows without counting them; `count` does.

        Returns logits float32 `[B, width, V]` after each token, and int32 `[B, width]` drawn from them.
        """
        rows = range(self.engine.slots)
        tokens_BT, counts_B = pad_rows([chunks.get(row, ()) for row in rows], width)
        sampling = RowSampling.stack([drawings.get(row, RowSampling()) for row in rows])
        self.state, logits_BTV, drawn_BT = programs.read(
            self._graph, self._params, self._counted(), tokens_BT, counts_B, sampling
        )
        return logits_BTV, drawn_BT

    def not_finite(self, ids: Sequence[int], mode_LK: np.ndarray | None) -> NumericsError:
        """The error for logits after these tokens of one row that are NaN or infinite."""
        gates = None if mode_LK is None else gates_from(jnp.asarray(mode_LK)[:, None], self.config, 1)
        return not_finite(self._model, ids, gates, "logits")

    def count(self, row: int, tokens: int) -> None:
        """Keeps the first `tokens` of what the row read last."""
        self.lengths[row] += tokens

    def copy(self, source: int, target: int) -> None:
        """Copies a row over another row of the same request."""
        self.state = programs.copy_row(self.state, np.int32(source), np.int32(target))
        self.lengths[target] = self.lengths[source]

    def resume(self, row: int, source: int, length: int) -> None:
        """Lets a free row go on from the first tokens that row `source`, perhaps the same, holds."""
        if row != source:
            self.copy(source, row)
        self.lengths[row] = length

    def share(self, demand: Demand, mode_LK: np.ndarray | None) -> float:
        """Share of the rows, or of the pages if that is more, that a request may need."""
        return demand.rows / self.engine.slots

    def warm_up(self, kept: Any) -> None:
        """Compiles what an empty engine has not needed yet; `kept` is any kept prompt."""
        for width in sorted({1, self.engine.step_tokens}):
            self.read({}, {}, width=width)
        self.copy(0, 0)

    def _counted(self) -> Cache:
        return replace(self.state, lengths=jnp.asarray(self.lengths.copy()))  # a copy: it is read after this returns

    def room(self, row: int) -> int:
        """Tokens that the row can read at once; 0 where it must be flushed first."""
        return self.engine.max_length - int(self.lengths[row])

    def flush(self, rows: Sequence[int]) -> None:
        """Packs the oldest group of each of these rows, which have no room; `rows_per_flush` rows at most."""
        raise AssertionError(f"rows {rows} of a plain cache have nothing to pack.")

    def refusal(self, demand: Demand, mode_LK: np.ndarray | None) -> str | None:
        """Why the request could not be served even alone, or None. Without `mode_LK` every head counts as full."""
        return None

    def reserve(self, demand: Demand, mode_LK: np.ndarray | None) -> Reservation | None:
        """Reserves the pages that the request needs until its end; None where it has to wait for others."""
        return Reservation(0)

    def insert(self, row: int, prompt: Prompt, demand: Demand, reservation: Reservation) -> None:
        """Puts a prompt into a free row, and corrects the reservation to its real routing."""
        length, mode_LK = np.int32(prompt.length), decode_modes(prompt.mode_LK, self.cache, self.config)
        self.state = programs.put_prompt_dense(self._counted(), prompt.kv, length, np.int32(row), mode_LK)
        self.lengths[row] = prompt.length

    def keep(self, row: int, prompt: Prompt) -> Any:
        """What `restore` needs to put the prompt just inserted into other rows."""
        return prompt

    def restore(self, row: int, kept: Any, reservation: Reservation) -> None:
        """Puts a kept prompt into a free row."""
        self.insert(row, kept, Demand(kept.length, kept.length), reservation)

    def forget(self, kept: Any) -> None:
        """Releases a kept prompt; rows that continue it stay as they are."""

    def release(self, row: int) -> None:
        """Frees a row. The caller ends its reservation."""
        self.lengths[row] = 0

    def end(self, reservation: Reservation) -> None:
        """Returns the pages that a request reserved and did not take."""


def _blank_rows(model: ElasticForCausalLM, engine: EngineConfig) -> DenseCache:
    config, dtype = model.config, model.embed.embedding[...].dtype
    shape = (config.num_layers, engine.slots, config.num_kv_heads, config.head_dim)
    return DenseCache.blank(shape, capacity=bucket(engine.max_length), dtype=dtype, spec=config.attention_spec)

"""What the server measures, as text for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from elastic_jax.config import HeadMode
from elastic_jax.engine import Engine
from elastic_jax.engine.paged_slots import PagedSlots
from elastic_jax.serve.answers import promised

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Counts:
    """What is counted since the start, beside the tokens that the worker counts."""

    replies: Counter[int] = field(default_factory=Counter)
    """Requests of a model by the status of their reply; 499 where the client has left."""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def add(self, usage: dict[str, Any]) -> None:
        """Counts the prompts of an answered question."""
        self.prompt_tokens += usage["prompt_tokens"]
        self.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]


def engine_gauges(engine: Engine) -> dict[str, tuple[str, float]]:
    """Name, meaning and value of what the engine holds at this moment; called in its thread."""
    modes = [request.mode_LK for request in engine.requests if request.mode_LK is not None]
    sparsity = float(np.mean([np.mean(mode_LK == HeadMode.SPARSE) for mode_LK in modes])) if modes else 0.0
    gauges = {
        "requests_waiting": ("Requests without a row.", len(engine.requests) - len(modes)),
        "requests_running": ("Requests with a row.", len(modes)),
        "rows": ("Rows that decode together at most.", engine.config.slots),
        "load": ("What accepted requests may need, in shares of all rows or pages.", promised(engine)),
        "model_sparsity_ratio": ("Share of sparse heads, mean of the running requests.", sparsity),
        "cache_bytes": ("Bytes of the cache of all rows.", engine.nbytes),
    }
    if isinstance(engine.slots, PagedSlots):
        pool = engine.slots.pool
        gauges["pages"] = ("Pages of the cache.", pool.size)
        gauges["pages_free"] = ("Pages that nobody holds.", pool.free)
    return gauges


def metrics_text(gauges: dict[str, tuple[str, float]], counts: Counts, tokens: int, tokens_per_second: float) -> str:
    """All measurements in Prometheus' text format; every name begins with `elastic_jax_`."""
    lines: list[str] = []

    def add(name: str, kind: str, meaning: str, values: Mapping[str, float]) -> None:
        lines.extend([f"# HELP elastic_jax_{name} {meaning}", f"# TYPE elastic_jax_{name} {kind}"])
        lines.extend(f"elastic_jax_{name}{labels} {value}" for labels, value in values.items())

    for name, (meaning, value) in gauges.items():
        add(name, "gauge", meaning, {"": value})
    add("tokens_per_second", "gauge", "Tokens drawn in a second, mean of the last ten.", {"": tokens_per_second})
    add("generated_tokens_total", "counter", "Tokens drawn.", {"": tokens})
    add("prompt_tokens_total", "counter", "Tokens of the prompts answered.", {"": counts.prompt_tokens})
    add("cached_tokens_total", "counter", "Those of them that rows held already.", {"": counts.cached_tokens})
    replies = {f'{{status="{status}"}}': count for status, count in sorted(counts.replies.items())}
    add("replies_total", "counter", "Questions by the HTTP status of their reply, 499 for clients that left.", replies)
    return "\n".join(lines) + "\n"

"""DuoAttention's files (arXiv 2410.10819): a table of gates, and a `config.json` with the sizes in tokens."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from elastic_jax.config import RouterConfig
from elastic_jax.config.checks import MOST_LAYERS, check_count
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.files import atomic_directory, read_json, write_json
from elastic_jax.heads.record import MOST_HEADS, Heads, ranked

TABLE = "full_attention_heads.tsv"
_CONFIG = "config.json"
_MSR = 0.5
"""Share of sparse heads in DuoAttention's own evaluations of models with grouped queries."""
_MOST_BYTES = 32 * MOST_LAYERS * MOST_HEADS
"""Of a table: a number is written with some 25 characters."""


def read_duo_attention(file: Path) -> Heads:
    """Reads a table of gates: one line for each layer, one number for each KV head, 1 for full.

    The order is that of the gates; of equal gates the first in the table is the last to become sparse. Blocks of 128
    tokens cover the sizes that `config.json` beside the table names (`sink_size`, `recent_size`); without one they are
    those of `RouterConfig`.

    Raises:
        CheckpointError: another kind of file.
    """
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{file.stat().st_size} bytes")
        rows = [[float(number) for number in line.split()] for line in file.read_text("utf-8").splitlines() if line]
        gates = np.array(rows, np.float32)
        if gates.ndim != 2 or not gates.size or not np.isfinite(gates).all():
            raise ValueError(f"its numbers have shape {gates.shape}, or are not finite")
        return Heads(
            ranked(gates),
            _geometry(file.parent / _CONFIG),
            msr=_MSR,
            gates=gates,
            settings={"method": "DuoAttention"},
        )
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{file} is no table of gates ({error}); want a line for each layer, with a number for each KV head."
        ) from error


def _geometry(file: Path) -> RouterConfig:
    standard = RouterConfig()
    if not file.is_file():
        return standard
    raw = read_json(file)
    sizes = {name: raw[name] for name in ("sink_size", "recent_size") if name in raw}
    for name, size in sizes.items():
        check_count(f"{file} {name}", size)
    blocks = {name: math.ceil(size / standard.block_size) for name, size in sizes.items()}
    return RouterConfig(
        sink_blocks=blocks.get("sink_size", standard.sink_blocks),
        local_blocks=blocks.get("recent_size", standard.local_blocks),
    )


def save_duo_attention(heads: Heads, directory: str | Path) -> None:
    """Writes heads as DuoAttention reads them, into a new or empty directory; its users choose the MSR when they run.

    The gates are written where sorting them gives the order, otherwise the ranks, from 1 down to above 0.

    Raises:
        ConfigError: sparse heads that DuoAttention does not have.
        CheckpointError: the directory is not empty, or cannot be written.
    """
    router = heads.router
    if router.pattern != "fa-ssa":
        raise ConfigError(f"DuoAttention has no heads of pattern {router.pattern!r}; want 'fa-ssa'.")
    gates = heads.gates
    if gates is None or not np.array_equal(ranked(gates), heads.order):
        gates = 1 - heads.order / heads.order.size
    with atomic_directory(directory) as partial:
        np.savetxt(partial / TABLE, gates, delimiter="\t")
        sizes = {"sink_size": router.sink_blocks, "recent_size": router.local_blocks}
        write_json(partial / _CONFIG, {name: blocks * router.block_size for name, blocks in sizes.items()})

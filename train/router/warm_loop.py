"""The warm start of a run: measures with a progress bar, keeps what it has measured, stops when asked, then fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.files import atomic_file
from train.config import RouterTrainConfig, WarmStartConfig
from train.data.packing import Rows
from train.data.records import TASKS
from train.loop.reporting import CountProgress
from train.loop.trouble import Interrupted, StopRequest
from train.router.optim import RouterParams
from train.router.warm_start import Measured, by_sample, fit, fit_to_gates, make_probes, mean_gates

MEASURED_FILE = "warm_start.safetensors"
_SAVE_EVERY = 5


class Phase(NamedTuple):
    """A run of rows that are measured alike; `round_index` is -1 where only keys are taken."""

    round_index: int
    rows: int


KEY_ROWS = 24
"""Rows whose keys are taken where routers are fitted to calibrated heads and no number is given."""


def phases(settings: WarmStartConfig) -> list[Phase]:
    """First round, keys, further rounds; keys alone where heads are not measured."""
    if not settings.rows:
        return [Phase(-1, settings.key_rows or KEY_ROWS)]
    first, *further = (Phase(index, rows) for index, rows in enumerate(settings.rows))
    return [first, Phase(-1, settings.key_rows), *further]


def warm_routers(
    router: RouterParams,
    frozen: dict[str, jax.Array],
    model: ModelConfig,
    config: RouterTrainConfig,
    batches: Iterator[Rows],
    directory: Path,
    *,
    fingerprint: str,
    wanted_tLK: np.ndarray | None = None,
) -> RouterParams:
    """Routers fitted to the first packed rows of `batches`; measurements already in `directory` are reused.

    They are fitted to the gates `wanted_tLK` of each task where these are given, else to the measured worth of heads.

    Raises:
        Interrupted: SIGTERM or SIGINT; the rows measured so far are kept.
    """
    settings = config.warm_start
    levels = settings.levels if wanted_tLK is None else (0.0,)  # 0: keys are read under the wanted gates
    probes = make_probes(model, levels=levels, max_segments=config.data.max_segments)
    record = _Record.open(directory / MEASURED_FILE, fingerprint)
    rows = _micro_batches(batches, skip=record.rows)
    end_tLK = jnp.zeros((len(TASKS), model.num_layers, model.num_kv_heads))
    if wanted_tLK is not None:
        end_tLK = jnp.asarray(wanted_tLK, jnp.float32)
    upto = 0
    for phase in phases(settings):
        upto += phase.rows
        if record.rows >= upto:
            continue
        if phase.round_index > 0:
            known = record.upto(phase.round_index)
            end_tLK = mean_gates(_fit(router, known, model, config, None), known, model)
        probe = partial(probes.keys if phase.round_index < 0 else probes.worth, router | frozen, end_tLK)
        _measure(record, upto, rows, probe, phase)
    return _fit(router, record.all(), model, config, wanted_tLK)


def _fit(
    router: RouterParams,
    measured: Measured,
    model: ModelConfig,
    config: RouterTrainConfig,
    wanted_tLK: np.ndarray | None,
) -> RouterParams:
    with CountProgress("warm start: step", config.warm_start.steps) as progress:

        def on_step(done: int, loss: float) -> None:
            progress.update(done)

        if wanted_tLK is not None:
            return fit_to_gates(router, measured, wanted_tLK, model, config, on_step=on_step)
        return fit(router, measured, model, config, on_step=on_step)


def _measure(record: _Record, upto: int, batches: Iterator[Rows], probe: Callable[..., Any], phase: Phase) -> None:
    """Adds samples to the record until it holds `upto` rows."""
    label = "warm start: row of keys" if phase.round_index < 0 else f"warm start: row (round {phase.round_index + 1})"
    with StopRequest() as stop, CountProgress(label, upto) as progress:
        progress.update(record.rows)
        while record.rows < upto:
            rows = next(batches)
            record.add(by_sample(rows, *probe(rows), round_index=phase.round_index), len(rows.input_ids))
            progress.update(min(record.rows, upto))
            if stop.signal is not None or record.unsaved >= _SAVE_EVERY or record.rows >= upto:
                record.save()
            if stop.signal is not None:
                raise Interrupted(
                    f"stopped by {stop.signal.name} after {record.rows} rows of the warm start; saved in "
                    f"{record.file.parent}. Run the same command again to go on.",
                    128 + stop.signal,
                )


@dataclass
class _Record:
    """Measurements so far and the file that keeps them."""

    file: Path
    fingerprint: str
    rows: int
    parts: list[Measured]
    unsaved: int = 0

    @classmethod
    def open(cls, file: Path, fingerprint: str) -> _Record:
        """Goes on with what an earlier start measured on the same data; otherwise empty."""
        from safetensors import SafetensorError, safe_open

        empty = cls(file, fingerprint, 0, [])
        if not file.is_file():
            return empty
        try:
            with safe_open(file, "np") as stored:
                metadata = stored.metadata() or {}
                if metadata.get("digest") != fingerprint:
                    return empty
                part = Measured(*(stored.get_tensor(name) for name in Measured._fields))
                return cls(file, fingerprint, int(metadata["rows"]), [part])
        except (SafetensorError, KeyError, ValueError):  # damaged, so it is measured anew
            return empty

    def add(self, part: Measured, rows: int) -> None:
        self.parts.append(part)
        self.rows += rows
        self.unsaved += 1

    def all(self) -> Measured:
        self.parts = [Measured(*map(np.concatenate, zip(*self.parts, strict=True)))]
        return self.parts[0]

    def upto(self, round_index: int) -> Measured:
        """What was known before a round began."""
        everything = self.all()
        return Measured(*(field[everything.round_X < round_index] for field in everything))

    def save(self) -> None:
        from safetensors.numpy import save_file

        with atomic_file(self.file) as partial:
            save_file(self.all()._asdict(), partial, {"rows": str(self.rows), "digest": self.fingerprint})
        self.unsaved = 0


def _micro_batches(batches: Iterator[Rows], *, skip: int) -> Iterator[Rows]:
    """Micro-batches after the first `skip` rows."""
    seen = 0
    for batch in batches:
        for index in range(len(batch.input_ids)):
            micro = Rows(*(field[index] for field in batch))
            if seen >= skip:
                yield micro
            seen += len(micro.input_ids)

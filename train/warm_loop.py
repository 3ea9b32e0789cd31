"""The warm start of a run: measures with a progress bar, keeps what it has measured, stops when asked, then fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from elastic_jax.config import ModelConfig
from train.config import RouterTrainConfig
from train.data.packing import Rows
from train.interrupt import Interrupted, StopRequest
from train.optim import RouterParams
from train.progress import CountProgress
from train.warm_start import Measured, by_sample, fit, make_probes

MEASURED_FILE = "warm_start.safetensors"
_SAVE_EVERY = 5


def warm_routers(
    router: RouterParams,
    frozen: dict[str, jax.Array],
    model: ModelConfig,
    config: RouterTrainConfig,
    batches: Iterator[Rows],
    directory: Path,
    *,
    fingerprint: str,
) -> RouterParams:
    """Routers fitted to the first packed rows of `batches`; measurements already in `directory` are reused.

    Raises:
        Interrupted: SIGTERM or SIGINT; the rows measured so far are kept.
    """
    measured = _measure(router | frozen, model, config, batches, directory / MEASURED_FILE, fingerprint)
    with CountProgress("warm start: step", config.warm_start.steps) as progress:
        return fit(router, measured, model, config, on_step=lambda done, loss: progress.update(done))


def _measure(
    params: dict[str, jax.Array],
    model: ModelConfig,
    config: RouterTrainConfig,
    batches: Iterator[Rows],
    file: Path,
    fingerprint: str,
) -> Measured:
    measured, wanted = config.warm_start.rows, config.warm_start.rows + config.warm_start.key_rows
    done, parts = _stored(file, fingerprint)
    probes = make_probes(model, levels=config.warm_start.levels, max_segments=config.data.max_segments)
    with StopRequest() as stop, CountProgress("warm start: row", wanted) as progress:
        progress.update(done)
        for rows in _micro_batches(batches, skip=done):
            if done >= wanted:
                break
            probe = probes.worth if done < measured else probes.keys
            parts.append(by_sample(rows, *probe(params, rows)))
            done += len(rows.input_ids)
            progress.update(min(done, wanted))
            if stop.signal is not None or len(parts) % _SAVE_EVERY == 0 or done >= wanted:
                parts = [Measured(*map(np.concatenate, zip(*parts, strict=True)))]
                _store(file, done, parts[0], fingerprint)
            if stop.signal is not None and done < wanted:
                raise Interrupted(
                    f"stopped by {stop.signal.name} after {done} of {wanted} rows of the warm start; saved in "
                    f"{file.parent}. Run the same command again to go on.",
                    128 + stop.signal,
                )
    return Measured(*map(np.concatenate, zip(*parts, strict=True)))


def _micro_batches(batches: Iterator[Rows], *, skip: int) -> Iterator[Rows]:
    """Micro-batches after the first `skip` rows."""
    seen = 0
    for batch in batches:
        for index in range(len(batch.input_ids)):
            micro = Rows(*(field[index] for field in batch))
            if seen >= skip:
                yield micro
            seen += len(micro.input_ids)


def _store(file: Path, rows: int, measured: Measured, fingerprint: str) -> None:
    from safetensors.numpy import save_file

    draft = file.with_suffix(".tmp")
    save_file(measured._asdict(), draft, {"rows": json.dumps(rows), "digest": fingerprint})
    draft.replace(file)


def _stored(file: Path, fingerprint: str) -> tuple[int, list[Measured]]:
    """(rows measured, measurements) of an earlier start with the same data; none without."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return 0, []
    try:
        with safe_open(file, "np") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("digest") != fingerprint:
                return 0, []
            return json.loads(metadata["rows"]), [Measured(*(stored.get_tensor(name) for name in Measured._fields))]
    except SafetensorError:
        return 0, []

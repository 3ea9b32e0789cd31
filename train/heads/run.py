"""A calibration from model and texts to the finished record: the gates, the order settled, the curve, the pictures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from elastic_jax.config import HeadMode, ModelConfig
from elastic_jax.errors import ConfigError, DataError
from elastic_jax.heads import CurvePoint, Heads
from elastic_jax.journal import Journal
from elastic_jax.layout import check_positions
from elastic_jax.model import ElasticForCausalLM, to_params
from elastic_jax.settings import settings_dict
from elastic_jax.sharding.rules import batch_sharding, param_shardings, replicated
from elastic_jax.weights.heads import heads_fingerprint
from train.heads.picture import curve_figure, gates_figure
from train.heads.samples import HELD_OUT, Batch, Batches, Samples
from train.heads.settings import GROUPS, HeadsTrainConfig
from train.heads.settle import HeldOut, first_order, ranks, settled
from train.heads.step import HeadsState, first_state, make_step
from train.loop.directory import claim
from train.loop.distributed import check_rows, is_main, placed, run_mesh, wait_for_all
from train.loop.fit import Job, fit
from train.loop.reporting import CountProgress, Values

_LOG = logging.getLogger(__name__)
SETTLE_FILE = "settle.jsonl"
_MOST_BETWEEN = 0.3
"""Share of the gates that may end between 0.1 and 0.9 without a warning."""


def calibrate_heads(config: HeadsTrainConfig, model: ElasticForCausalLM, samples: Samples, directory: Path) -> None:
    """Calibrates in `directory` by `train.loop.fit`, whose errors it raises, and writes the record to `heads` there.

    With `per_task` there is a record for each task: `heads-retrieval`, `heads-prose`, `heads-code`.

    Raises:
        ConfigError: settings that the mesh or the model cannot follow.
        DataError: a model whose full attention predicts nothing of what the samples ask for.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"{jax.process_count()} processes; heads are calibrated by one, on the devices of one host. Give the "
            "command without distributed.coordinator."
        )
    mesh = run_mesh(config.mesh)
    if mesh is not None:
        check_rows(config.optim.rows, mesh)
    check_positions(
        model.config,
        config.data.sizes[-1],
        f"data.max_tokens is {config.data.max_tokens}",
        "Lower it",
        ConfigError,
    )
    with claim(directory, config):
        _calibrate(config, model, samples, directory, mesh)


def _calibrate(
    config: HeadsTrainConfig, model: ElasticForCausalLM, samples: Samples, directory: Path, mesh: Mesh | None
) -> None:
    model_config = replace(model.config, router=replace(model.config.router, **asdict(config.sparse)))
    weights = heads_fingerprint(model)
    frozen = to_params(model)
    state = first_state(model_config, config)
    place = partial(_placed, mesh=mesh)
    if mesh is not None:
        state = placed(state, replicated(mesh))
        frozen = placed(frozen, param_shardings(frozen, mesh))
    fingerprint = samples.digest()
    with Journal(directory / SETTLE_FILE, _identity(config, fingerprint, weights)) as journal:
        groups = _held_out(config, model_config, frozen, samples, journal, place)
        _refuse_ignorance(groups[0], config.least_answered)
        job = Job(
            config=config,
            state=state,
            step=make_step(model_config, config),
            frozen=frozen,
            batches=Batches(samples, config.data.sizes, rows=config.optim.rows, steps=config.optim.steps),
            fingerprint=fingerprint,
            watched=("loss", "kl", "grad_norm"),
            evaluate=partial(_hard_distances, config, groups),
            step_line=_line,
            mesh=mesh,
            batch_shardings=None if mesh is None else _shardings(mesh),
        )
        state = fit(job, directory)
        if is_main():
            for group, held_out in enumerate(groups):
                name = f"heads-{GROUPS[group]}" if config.per_task else "heads"
                heads = _settle(config, state, group, held_out, weights)
                heads.save(directory / name, overwrite=True)
                gates_figure(heads).savefig(directory / name / "gates.png", dpi=140)
                curve_figure(heads).savefig(directory / name / "curve.png", dpi=140)
    wait_for_all("export")


def _hard_distances(config: HeadsTrainConfig, groups: Sequence[HeldOut], state: HeadsState, _: Any) -> dict[str, float]:
    """KL of the hard set that the gates amount to so far, on the held-out samples of each group."""
    found = {}
    for group, held_out in enumerate(groups):
        gates_LK, opened_LK = np.asarray(state.gates[group]), np.asarray(state.opened[group])
        draft = Heads(ranks(first_order(gates_LK, opened_LK), gates_LK.shape), config.router, msr=_target(config))
        found[f"kl/{GROUPS[group]}" if config.per_task else "kl"] = held_out.kl(draft.modes() == HeadMode.FULL)
    return found


def _target(config: HeadsTrainConfig) -> float:
    return 0.8 if config.target_msr is None else config.target_msr


def _settle(config: HeadsTrainConfig, state: HeadsState, group: int, held_out: HeldOut, weights: str | None) -> Heads:
    gates_LK, opened_LK = np.asarray(state.gates[group]), np.asarray(state.opened[group])
    shape = gates_LK.shape
    between = float(((gates_LK > 0.1) & (gates_LK < 0.9)).mean())
    if between > _MOST_BETWEEN:
        _LOG.warning(
            "%.0f %% of the gates ended between 0.1 and 0.9, so their order is uncertain. Give more optim.steps, or a "
            "higher optim.price or optim.binary.",
            100 * between,
        )
    order = first_order(gates_LK, opened_LK)
    target = _target(config)
    draft = Heads(ranks(order, shape), config.router, msr=target)
    count = int((draft.modes() == HeadMode.FULL).sum())
    with CountProgress("settling: exchange", config.settle.swaps, quiet=not is_main()) as progress:
        order = settled(
            order,
            count,
            shape,
            held_out,
            config.settle.swaps,
            lambda done, kl: progress.update(done, f"KL {kl:.4f} with {count} heads full"),
        )
    draft = Heads(ranks(order, shape), config.router, msr=target)
    curve, shares = [], sorted({target, *config.settle.msr}, reverse=True)
    with CountProgress("curve: MSR", len(shares), quiet=not is_main()) as progress:
        for done, share in enumerate(shares, start=1):
            full_LK = draft.modes(share) == HeadMode.FULL
            kl = held_out.kl(full_LK)
            point = CurvePoint(int(full_LK.sum()), 1.0 - float(full_LK.mean()), kl)
            curve += [point] if point not in curve else []
            progress.update(done, f"{share:.0%} sparse: KL {kl:.4f}")
    return replace(draft, gates=gates_LK, curve=tuple(curve), weights=weights, settings=_recorded(config))


def _held_out(
    config: HeadsTrainConfig,
    model: ModelConfig,
    frozen: dict[str, Any],
    samples: Samples,
    journal: Journal,
    place: Any,
) -> list[HeldOut]:
    """The held-out samples of each group."""
    count = max(config.settle.samples, len(config.data.kinds) if config.per_task else 1)
    batches = [
        samples.batch(number, config.optim.rows, length, HELD_OUT)
        for number in range(count)
        for length in config.data.sizes
    ]
    groups = len(GROUPS) if config.per_task else 1
    mine = [[batch for batch in batches if batch.group == group] for group in range(groups)]
    return [HeldOut(model, frozen, chosen, journal, place) for chosen in mine]


def _refuse_ignorance(held_out: HeldOut, least: float) -> None:
    answered = held_out.answered()
    if answered < least:
        raise DataError(
            f"with full attention the model predicts {answered:.1%} of the tokens that the samples ask for, so nothing "
            f"shows which heads it needs (least_answered is {least:g}). Take a model that was trained for these "
            "lengths, or lower data.min_tokens and data.max_tokens."
        )
    if is_main():
        print(f"full attention predicts {answered:.0%} of the held-out tokens", flush=True)


def _identity(config: HeadsTrainConfig, fingerprint: str, weights: str | None) -> dict[str, Any]:
    """What the measured distances depend on."""
    return {
        "texts": fingerprint,
        "weights": weights,
        **{name: settings_dict(config)[name] for name in ("sparse", "data", "dtype", "per_task")},
        "samples": config.settle.samples,
        "rows": config.optim.rows,
        "seed": config.run.seed,
    }


def _recorded(config: HeadsTrainConfig) -> dict[str, Any]:
    """The settings that decide the result, without places of this machine."""
    told = settings_dict(config)
    data = {name: value for name, value in told["data"].items() if name not in ("folder", "exclude")}
    kept = ("dtype", "target_msr", "loss", "per_task", "optim", "settle")
    return {"method": "distilled gates", **{name: told[name] for name in kept}, "data": data, "seed": config.run.seed}


def _shardings(mesh: Mesh) -> Batch:
    tokens, few = (batch_sharding(mesh, leading=0, tokens=tokens) for tokens in (True, False))
    return Batch(tokens, _one_axis(few), few, few, replicated(mesh))


def _one_axis(sharding: Any) -> Any:
    return type(sharding)(sharding.mesh, type(sharding.spec)(*sharding.spec[:1]))


def _placed(batch: Batch, mesh: Mesh | None) -> Batch:
    return batch if mesh is None else placed(batch, _shardings(mesh))


def _line(values: Values) -> str:
    return (
        f"KL {values['kl']:.3f}  {values['open']:.0f} heads open, {values['between']:.0f} between  "
        f"MSR {values['msr']:.2f}  price {values['price']:.2g}  {values['seconds']:.1f} s/step"
    )

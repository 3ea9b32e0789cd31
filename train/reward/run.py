"""A run of judge or reward-model training, from a loaded model and samples to the exported model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from elastic_jax.config import ModelConfig
from elastic_jax.errors import ConfigError
from elastic_jax.files import read_json, write_json
from elastic_jax.layout import check_positions
from elastic_jax.model import ElasticForCausalLM, from_params
from elastic_jax.reward import ElasticRewardModel
from elastic_jax.sharding.rules import param_shardings
from elastic_jax.weights.names import SCORE
from train.data.packing import Sample, check_sequences
from train.loop.directory import claim
from train.loop.distributed import is_main, on_mesh, placed, wait_for_all
from train.loop.fit import Job, best_state, fit, has_checkpoint
from train.loop.reporting import Values
from train.reward.config import BradleyTerryTrainConfig, PairSettings, SftConfig, SimpoTrainConfig
from train.reward.data.pairs import PairSample
from train.reward.dataset import Batches, Data, judge_stream, pair_stream
from train.reward.objectives import Objective, bradley_terry_objective, sft_objective, simpo_objective
from train.reward.placement import batch_shardings, check_mesh, gathered, placed_state
from train.reward.step import first_state, make_measure, make_step
from train.reward.weights import Assembly, Params, assemble

HELD_OUT_FILE = "held_out.json"
AnyConfig = SftConfig | SimpoTrainConfig | BradleyTerryTrainConfig
AnyModel = ElasticForCausalLM | ElasticRewardModel


def train(
    config: AnyConfig, model: AnyModel, data: Data, directory: Path, *, mesh: Mesh | None = None
) -> dict[str, dict[str, float]]:
    """Trains in `directory` by `train.loop.fit`, whose errors it raises, and exports the model.

    With `run.eval_every`, the model of least held-out loss is exported, else the last one. Returns the held-out metrics
    `before` and `after`, which are also in the directory.

    Args:
        mesh: of the devices, on which the model is; None for the default device.

    Raises:
        ConfigError: lengths that do not fit the model, or rows that do not fit the mesh.
        DataError: a sample that the model cannot read.
    """
    if mesh is not None:
        check_mesh(config, mesh)
    check_fits(config, model.config, data)
    assembly, params, frozen = assemble(model, config.lora, block_size=config.block_size, seed=config.run.seed)
    objective, batches = _parts(config, assembly, data)
    if not config.optim.steps:
        config = replace(config, optim=replace(config.optim, steps=batches.per_epoch))
    held_out, shardings = batches.held_out, None
    if mesh is None:
        state = first_state(params, config.optim)
    else:
        state = placed_state(params, config.optim, mesh)
        frozen = placed(frozen, param_shardings(frozen, mesh))
        shardings = batch_shardings(held_out[0], mesh, leading=1)
        one = batch_shardings(held_out[0], mesh, leading=0)
        held_out = [placed(batch, one) for batch in held_out]
    with claim(directory, config):
        measure = make_measure(objective, held_out)
        job = Job(
            config=config,
            state=state,
            step=make_step(objective, config.optim),
            frozen=frozen,
            batches=batches.stream,
            fingerprint=batches.fingerprint,
            inputs={"held-out data": batches.held_out_fingerprint},
            evaluate=measure,
            best="loss",
            step_line=objective_line,
            mesh=mesh,
            batch_shardings=shardings,
        )
        held_out = directory / HELD_OUT_FILE
        results = read_json(held_out) if held_out.is_file() else {}
        if not has_checkpoint(directory) or "before" not in results:
            with on_mesh(mesh):
                results = {"before": measure(state, frozen)}
            _tell(f"held out, before: {_listed(results['before'])}")
        state = fit(job, directory)
        _store(directory, results)
        if config.run.eval_every:
            del state  # two states may not fit in memory
            state = best_state(job, directory)
        with on_mesh(mesh):
            results["after"] = measure(state, frozen)
        _tell(f"held out, after:  {_listed(results['after'])}")
        _store(directory, results)
        whole = gathered(state.params, mesh), gathered(frozen, mesh)
        if is_main():
            export(config, model, assembly, *whole, directory)
        wait_for_all("export")
        return results


def export(
    config: AnyConfig, model: AnyModel, assembly: Assembly, params: Params, frozen: Params, directory: Path
) -> None:
    """Writes the trained model, adapters merged, in every format of `run.export`, each to its own folder."""
    from elastic_jax.weights import save_pretrained

    decoder = model.decoder if isinstance(model, ElasticRewardModel) else model
    trained = from_params(decoder.config, assembly.merged(params, frozen), source=decoder.source)
    trained.extras, trained.fresh_routers = decoder.extras, decoder.fresh_routers
    for form in config.run.export:
        if isinstance(model, ElasticRewardModel):
            head = params[SCORE].astype(assembly.dtype)
            ElasticRewardModel(trained, head, model.config).save_pretrained(directory / form, overwrite=True)
        else:
            save_pretrained(trained, directory / form, format=form, overwrite=True)


def objective_line(values: Values) -> str:
    """One line: the objective's metrics, seconds per step."""
    shown = _listed({name: values[name] for name in ("loss", "accuracy", "margin", "nll") if name in values})
    return f"{shown}  grad {values['grad_norm']:.2g}  {values['seconds']:.1f} s/step"


def _parts(config: AnyConfig, assembly: Assembly, data: Data) -> tuple[Objective, Batches]:
    if isinstance(config, SftConfig):
        block = assembly.config.router.block_size
        return sft_objective(assembly, config), judge_stream(data, config, block_size=block)
    if isinstance(config, SimpoTrainConfig):
        return simpo_objective(assembly, config), pair_stream(data, config)
    return bradley_terry_objective(assembly, config), pair_stream(data, config)


def check_fits(config: AnyConfig, model: ModelConfig, data: Data) -> None:
    """Checks that a model can be trained with these lengths on these samples; `train` raises the same errors."""
    block = config.block_size or model.router.block_size
    if isinstance(config, PairSettings):
        name, rows = "data.prompt_tokens", config.data.prompt_tokens
        longest = rows + config.data.response_tokens
    else:
        name, rows = "data.row_length", config.data.row_length
        longest = rows
    if rows % block:
        raise ConfigError(f"{name} is {rows}; want a multiple of {block}, the tokens of a block.")
    check_positions(model, longest, f"{name} asks for sequences of {longest} tokens", "Lower it", ConfigError)
    for samples in (data.train, data.held_out):
        check_sequences((ids for sample in samples for ids in _sequences(sample)), model)


def _sequences(sample: Sample | PairSample) -> list[np.ndarray]:
    """The token sequences that the model sees of a sample."""
    if isinstance(sample, Sample):
        return [sample.input_ids]
    return [np.concatenate([sample.prompt_ids, response]) for response in sample.response_ids]


def _tell(line: str) -> None:
    if is_main():
        print(line, flush=True)


def _store(directory: Path, results: dict[str, Any]) -> None:
    if is_main():
        write_json(directory / HELD_OUT_FILE, results)


def _listed(values: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())

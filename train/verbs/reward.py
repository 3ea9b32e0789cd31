"""`elastic-jax train sft`, `train simpo` and `train bt`: train judges and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elastic_jax import smollm2
from elastic_jax.cli.args import parse_verb, required
from elastic_jax.files import check_output
from train.reward.config import BradleyTerryTrainConfig, SftConfig, SimpoTrainConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh


def sft(argv: Sequence[str]) -> int:
    """Teach a model to judge: supervised training on judgements, in packed rows. A run directory that holds checkpoints
    is continued."""
    return _train("sft", SftConfig, str(sft.__doc__), argv)


def simpo(argv: Sequence[str]) -> int:
    """Train a judge on preferences between its answers (SimPO with several rejected ones). Long prompts are computed
    once for all their responses. A run directory that holds checkpoints is continued."""
    return _train("simpo", SimpoTrainConfig, str(simpo.__doc__), argv)


def bt(argv: Sequence[str]) -> int:
    """Train a scalar reward model on preferences (Bradley-Terry). Long prompts are computed once for all their
    responses. A run directory that holds checkpoints is continued."""
    return _train("bt", BradleyTerryTrainConfig, str(bt.__doc__), argv)


def _train(kind: str, cls: type, summary: str, argv: Sequence[str]) -> int:
    asked = parse_verb(cls, argv, verb=f"train {kind}", summary=" ".join(summary.split()))
    config = asked.settings
    source = smollm2.source(required(config.model, "--model SOURCE", "model to train"))
    directory = Path(required(config.run.directory, "--run.directory DIRECTORY", "run directory"))
    check_output(directory, folder=True)

    from elastic_jax.weights import read_config
    from elastic_jax.weights.tokenizer import load_tokenizer
    from train.loop.directory import dated
    from train.loop.distributed import run_mesh, start
    from train.reward.dataset import load_judgements, load_pairs
    from train.reward.run import check_fits, train

    if not asked.dry_run:
        start(config.distributed, config.run)
    load = load_judgements if kind == "sft" else load_pairs
    tokenizer = load_tokenizer(source)
    config = dated(config, tokenizer, directory)
    data = load(config, tokenizer)
    print(data.report, flush=True)
    if asked.dry_run:
        check_fits(config, read_config(source, router=config.router), data)
        return 0
    mesh = run_mesh(config.mesh)
    train(config, _model(config, source, mesh), data, directory, mesh=mesh)
    print(f"Wrote {', '.join(config.run.export)} to {directory}")
    return 0


def _model(config: Any, source: str | Path, mesh: Mesh | None) -> Any:
    from elastic_jax.model import require_routers
    from elastic_jax.reward import ElasticRewardModel
    from elastic_jax.weights import from_pretrained

    if isinstance(config, BradleyTerryTrainConfig):
        seed = config.run.seed if config.head == "new" else None
        model = ElasticRewardModel.from_pretrained(
            source, dtype=config.dtype, router=config.router, mesh=mesh, new_head_seed=seed
        )
        decoder = model.decoder
    else:
        model = decoder = from_pretrained(source, dtype=config.dtype, router=config.router, mesh=mesh)
    if config.routing == "routers":
        require_routers(decoder, "routing: routers")
    return model

"""`elastic-jax train router`: trains the routers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elastic_jax import smollm2
from elastic_jax.cli.args import parse_verb, required
from elastic_jax.files import check_output
from train.config import RouterTrainConfig
from train.data.records import TASKS


def main(argv: Sequence[str]) -> int:
    """Train the attention routers of a model on packed text; a run directory that holds checkpoints is continued."""
    asked = parse_verb(RouterTrainConfig, argv, verb="train router", summary=str(main.__doc__))
    config = asked.settings
    source = smollm2.source(required(config.model, "--model SOURCE", "model to train routers for"))
    directory = Path(required(config.run.directory, "--run.directory DIRECTORY", "run directory"))
    check_output(directory, folder=True)

    from elastic_jax.weights import from_pretrained, read_config
    from elastic_jax.weights.tokenizer import load_tokenizer
    from train.data.dataset import load_samples
    from train.data.packing import check_sequences
    from train.loop.directory import dated
    from train.loop.distributed import is_main, run_mesh, start
    from train.router.run import train_router

    if not asked.dry_run:
        start(config.distributed, config.run)
    tokenizer = load_tokenizer(source)
    config = dated(config, tokenizer, directory)
    samples = load_samples(config, tokenizer)
    if asked.dry_run:
        check_sequences((sample.input_ids for sample in samples), read_config(source))
        print(_data_summary(samples))
        return 0
    model = from_pretrained(source, dtype=config.dtype, mesh=run_mesh(config.mesh), router=config.init)
    train_router(config, model, samples, directory)
    if is_main():
        print(f"Trained {config.optim.steps} steps; wrote {', '.join(config.run.export)} to {directory}")
    return 0


def _data_summary(samples: list) -> str:
    lines = [f"{len(samples)} samples, {sum(len(sample.input_ids) for sample in samples)} tokens"]
    for task, label in enumerate(TASKS):
        sizes = [len(sample.input_ids) for sample in samples if sample.task_ids[0] == task]
        if sizes:
            lines.append(f"  {label}: {len(sizes)} samples of {min(sizes)} to {max(sizes)} tokens")
    return "\n".join(lines)

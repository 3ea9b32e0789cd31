"""`elastic-jax train heads`: calibrates which heads need full attention."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elastic_jax import smollm2
from elastic_jax.cli.args import parse_verb, required
from elastic_jax.files import check_output
from train.heads.settings import HeadsTrainConfig


def main(argv: Sequence[str]) -> int:
    """Calibrate which KV heads of a model need full attention: an order of all heads, to be cut at any share."""
    asked = parse_verb(HeadsTrainConfig, argv, verb="train heads", summary=str(main.__doc__))
    config = asked.settings
    source = smollm2.source(required(config.model, "--model SOURCE", "model to calibrate"))
    directory = Path(required(config.run.directory, "--run.directory DIRECTORY", "run directory"))
    check_output(directory, folder=True)

    from elastic_jax.weights import from_pretrained
    from elastic_jax.weights.tokenizer import load_tokenizer
    from train.data.corpus import from_folder, from_standard_library
    from train.heads.run import calibrate_heads
    from train.heads.samples import Samples
    from train.loop.directory import dated
    from train.loop.distributed import is_main, run_mesh, start

    if not asked.dry_run:
        start(config.distributed, config.run)
    tokenizer = load_tokenizer(source)
    config = dated(config, tokenizer, directory)
    data = config.data
    corpus = from_standard_library() if data.folder is None else from_folder(Path(data.folder), data.exclude)
    samples = Samples(corpus, tokenizer, data, seed=config.run.seed, per_task=config.per_task)
    if asked.dry_run:
        print(_data_summary(config))
        return 0
    model = from_pretrained(source, dtype=config.dtype, mesh=run_mesh(config.mesh))
    calibrate_heads(config, model, samples, directory)
    if is_main():
        print(f"Calibrated; wrote {'heads by task' if config.per_task else 'heads'} to {directory}")
    return 0


def _data_summary(config: HeadsTrainConfig) -> str:
    sizes = ", ".join(map(str, config.data.sizes))
    return f"{config.optim.steps} steps of {config.optim.rows} samples of {sizes} tokens in turn"

"""Trains a toy model by shipped recipes on eight simulated devices, started by `programs.reports`.

The recipe's own mesh, batch, losses and
schedules stay; rows, blocks and the number of steps are made small. Prints the losses of each recipe as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from tiny import CONFIG, tiny_model
from train_run import tiny_samples

from elastic_jax.settings import load_settings
from train.config import RouterTrainConfig
from train.router.run import train_router


def main(folder: str, names: list[str]) -> None:
    for name in names:
        recipe = load_settings(RouterTrainConfig, name)
        config = replace(
            recipe,
            router=replace(recipe.router, block_size=16, local_blocks=2),
            data=replace(recipe.data, row_length=128, max_segments=3),
            optim=replace(recipe.optim, steps=2, accumulate=2),
        )
        directory = Path(folder) / name
        train_router(config, tiny_model(router=replace(CONFIG.router, width=2)), tiny_samples(), directory)
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        print(json.dumps({"name": name, "losses": [line["loss"] for line in lines]}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

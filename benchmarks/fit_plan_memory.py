"""Fits the live arrays of which `elastic-jax plan` estimates memory: `python benchmarks/fit_plan_memory.py`.

What the TPU compiler reserved for the programs below is the column "compiler" of the first table of docs/scaling.md.
The fit tries one half more and less of each number of `train.plan.estimate.LiveArrays` in turn, as long as the squared
relative errors get smaller: a second. After a change of the model, of JAX or of libtpu, `--compile` compiles the
programs anew (extra `tpu-aot`, no TPU; minutes for each) and fits to what the compiler says then.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))


class Program(NamedTuple):
    """One optimizer step of a recipe on rows of 65,536 tokens."""

    topology: str
    mesh: tuple[int, int, int, int]
    """Sizes of data, fsdp, tensor, context."""
    rows: int
    accumulate: int
    remat: bool | str
    gib: float
    """What the compiler reserved on each device."""
    recipe: str = "router_qwen3_8b_64k"


PROGRAMS = (
    Program("v6e:8x8", (1, 8, 1, 8), 48, 1, True, 25.04),
    Program("v6e:8x8", (1, 16, 1, 4), 48, 1, True, 22.01),
    Program("v5p:4x4x4", (1, 8, 1, 8), 48, 1, True, 24.12),
    Program("v5e:8x8", (1, 8, 1, 8), 48, 1, "offload", 11.06),
    Program("v5e:8x8", (1, 16, 1, 4), 48, 1, "offload", 8.80),
    Program("v6e:4x4", (1, 8, 1, 2), 16, 1, "offload", 13.34),
    Program("v6e:8x8", (1, 8, 1, 8), 8, 6, True, 4.82),
    Program("v5e:4x4", (1, 8, 1, 2), 8, 6, "offload", 7.08),
    Program("v6e:4x4", (1, 2, 1, 8), 12, 1, True, 25.82),
    Program("v6e:16x16", (1, 32, 1, 8), 192, 1, True, 24.86),
    Program("v5p:4x4x4", (1, 8, 1, 8), 8, 6, False, 72.07),
    Program("v6e:8x8", (1, 8, 2, 4), 8, 6, True, 6.77),
    Program("v5e:2x2", (1, 1, 1, 4), 1, 48, True, 12.42),
    Program("v5e:2x2", (2, 1, 1, 2), 2, 24, "offload", 14.24),
    Program("v6e:4x4", (1, 8, 1, 2), 8, 6, True, 15.36, "router_llama31_8b_64k"),
    Program("v5e:4x4", (1, 8, 1, 2), 8, 6, True, 10.65, "router_qwen3_4b_64k"),
)


@cache
def settings(program: Program) -> tuple[Any, Any]:
    """Model and settings of the run."""
    from elastic_jax.settings import load_settings
    from elastic_jax.sharding import MeshConfig
    from train.config import RouterTrainConfig
    from train.plan.shapes import model_shape

    run = load_settings(RouterTrainConfig, program.recipe)
    optim = replace(run.optim, rows=program.rows, accumulate=program.accumulate)
    run = replace(run, mesh=MeshConfig(*program.mesh), optim=optim, remat=program.remat)
    return replace(model_shape(str(run.model)), router=run.router), run


def compiled_gib(program: Program) -> float:
    from train.plan.chips import GIB, parse_topology
    from train.plan.compile import compile_step, tpu_mesh

    model, run = settings(program)
    compiled = compile_step(model, run, tpu_mesh(run, parse_topology(program.topology)))
    if compiled.refusal:
        raise SystemExit(f"{program}: {compiled.refusal}")
    return compiled.total / GIB


def estimated_gib(program: Program, live: Any) -> float:
    from jax.sharding import AbstractMesh

    from elastic_jax.sharding.mesh import AXES
    from train.plan.chips import GIB
    from train.plan.estimate import step_memory

    return step_memory(*settings(program), AbstractMesh(program.mesh, AXES), live).total / GIB


def squared_error(programs: list[Program], live: Any) -> float:
    return sum(math.log(estimated_gib(program, live) / program.gib) ** 2 for program in programs)


def fit(programs: list[Program], start: Any) -> Any:
    """The numbers of live arrays, in steps of a half, of which no single one can be changed for the better."""
    best, error, better = start, squared_error(programs, start), True
    while better:
        better = False
        for name in start._fields:
            for step in (-0.5, 0.5):
                tried = best._replace(**{name: getattr(best, name) + step})
                found = squared_error(programs, tried)
                if getattr(tried, name) > 0 and found < error:
                    best, error, better = tried, found, True
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="compile the programs anew")
    arguments = parser.parse_args()
    from train.plan.estimate import LiveArrays

    programs = list(PROGRAMS)
    if arguments.compile:
        programs = [program._replace(gib=compiled_gib(program)) for program in programs]
    now, fitted = LiveArrays(), fit(programs, LiveArrays())
    print("topology   data fsdp tensor context  rows      remat    compiler  estimate   fitted")
    for program in programs:
        mesh = "{:5}{:5}{:7}{:8}".format(*program.mesh)
        gib = "".join(f"{value:10.2f}" for value in (program.gib, *(estimated_gib(program, x) for x in (now, fitted))))
        print(f"{program.topology:10}{mesh}{program.rows:6} x {program.accumulate:<3}{program.remat!s:>8}{gib}")
    for name, before in now._asdict().items():
        print(f"{name:14} {before:5} in use, {getattr(fitted, name):5} fitted")
    errors = [math.sqrt(squared_error(programs, live) / len(programs)) for live in (now, fitted)]
    print("root mean square of the relative error: {:.1%} in use, {:.1%} fitted".format(*errors))


if __name__ == "__main__":
    main()

"""Memory and work of a chip as slices grow, by the TPU compiler: `python benchmarks/weak_scaling.py --out FILE.json`.

Compiles one step of router training of Qwen3-8B on rows of 65,536 tokens for 16, 64 and 256 chips of v6e with three
rows for every four chips, and draws what each chip holds and does. Needs the extra `tpu-aot`, no TPU; minutes for each
size. Sizes that FILE already has are not compiled again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

SLICES = {"v6e:4x4": 2, "v6e:8x8": 8, "v6e:16x16": 32}
"""fsdp by topology; context is 8."""
ROWS_PER_FSDP = 6


def measure(topology_name: str, fsdp: int) -> dict[str, float]:
    """GiB and FLOPs of a chip, as compiled and as estimated.

    The compiler counts the body of each loop once (the loops over layers and over blocks of the vocabulary have the
    same length on every slice), and attention kernels by what they say of themselves.
    """
    from elastic_jax.settings import load_settings
    from elastic_jax.sharding import MeshConfig
    from train.config import RouterTrainConfig
    from train.plan.chips import GIB, parse_topology
    from train.plan.compile import compile_step, tpu_mesh
    from train.plan.estimate import default_sparse_share
    from train.plan.search import make_plan
    from train.plan.shapes import model_shape

    topology = parse_topology(topology_name)
    run = load_settings(RouterTrainConfig, "router_qwen3_8b_64k")
    optim = replace(run.optim, rows=ROWS_PER_FSDP * fsdp, accumulate=1)
    run = replace(run, mesh=MeshConfig(fsdp=fsdp, context=8), optim=optim)
    model = replace(model_shape(str(run.model)), router=run.router)
    compiled = compile_step(model, run, tpu_mesh(run, topology))
    if compiled.refusal:
        raise SystemExit(f"{topology_name}: {compiled.refusal}")
    plan = make_plan(model, run, topology, default_sparse_share(run))
    return {
        "chips": topology.chips,
        "gib": compiled.total / GIB,
        "estimated_gib": plan.memory.total / GIB,
        "flops": compiled.flops,
        "estimated_flops": (plan.work.matrix_flops + plan.work.attention_flops) / topology.devices,
        "collectives": sum(compiled.collectives.values()),
    }


def draw(results: list[dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (memory, work) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    chips = [result["chips"] for result in results]
    memory.plot(chips, [result["gib"] for result in results], "o-", label="TPU compiler")
    memory.plot(chips, [result["estimated_gib"] for result in results], "s--", label="estimate")
    memory.axhline(31.24, color="grey", linewidth=1)
    memory.annotate("v6e: 31.24", (chips[0], 31.24), textcoords="offset points", xytext=(0, -11), color="grey")
    memory.set(ylabel="GiB on each chip", ylim=(0, 34))
    memory.legend(loc="lower right")
    for name, style, label in (("flops", "o-", "TPU compiler"), ("estimated_flops", "s--", "estimate")):
        work.plot(chips, [result[name] / results[0][name] for result in results], style, label=label)
    work.set(ylabel="FLOPs of a chip, 16 chips = 1", ylim=(0, 1.2))
    work.legend(loc="lower right")
    for axes in (memory, work):
        axes.set_xscale("log", base=2)
        axes.set_xticks(chips, [f"{n:.0f}" for n in chips])
        axes.set_xlabel("chips")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON of the figures, read and completed")
    parser.add_argument("--figure", type=Path, help="where to draw them")
    arguments = parser.parse_args()
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for topology, fsdp in SLICES.items():
        if topology not in results:
            results[topology] = measure(topology, fsdp)
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    if arguments.figure:
        draw(list(results.values()), arguments.figure)


if __name__ == "__main__":
    main()

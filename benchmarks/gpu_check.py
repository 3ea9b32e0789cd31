"""Checks the GPU kernels on the GPU of this machine, then times them: `python benchmarks/gpu_check.py --out gpu.json`.

First every case of the shared table against the dense reference, for every implementation that the GPU can run: outputs
and gradients of attention, with block masks and log-sum-exp too, the choice of blocks, and decoding over a quantised
cache. A failure is printed and ends the program after the last case, before any timing. Then the attention of
Llama-3.1-8B in bfloat16 as `elastic-jax bench kernel` does it (docs/performance.md explains the table), and decoding,
see `gpu_decode.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from attention_cases import CASES, Case, Inputs, make_inputs, random_block_masks  # noqa: E402
from gpu_decode import check_decode, time_decode  # noqa: E402

from elastic_jax.errors import ConfigError  # noqa: E402
from eval.bench.kernel import KernelReport, measure_kernels  # noqa: E402
from eval.bench.kernel_page import kernel_table  # noqa: E402
from eval.bench.settings import BenchKernelSettings  # noqa: E402
from pallas_kernels import dual_attention, hybrid_attention, routed_attention, select_blocks  # noqa: E402
from pallas_kernels.dispatch import nvidia_capability  # noqa: E402

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
WIDE = [Case(f"head_dim {h}", 300, groups=2, kv_heads=2, head_dim=h, block=128, local=1) for h in (64, 96, 128, 256)]
HOPPER = [
    replace(case, head_dim=head_dim)
    for case in CASES
    if case.block == 128 and case.window is None
    for head_dim in (64, 128)
]


def with_gradients(op: Callable, cotangents: object, *operands: jax.Array) -> list[jax.Array]:
    @jax.jit
    def run(*operands):
        out, pull = jax.vjp(op, *operands)
        return jax.tree.leaves((out, pull(cotangents)))

    return run(*operands)


def ops(inputs: Inputs, case: Case) -> Iterator[tuple[str, Callable, object, tuple[jax.Array, ...]]]:
    """(name, function of `impl` and operands, cotangents, operands) of everything to compare."""
    qkv, d_out = (inputs.q, inputs.k, inputs.v), inputs.d_out
    d_lse = jnp.cos(jnp.arange(d_out[..., 0].size, dtype=jnp.float32)).reshape(d_out.shape[:3])
    masks = dict(zip(("block_mask", "full_block_mask"), random_block_masks(case), strict=True))
    every = {name: {name: mask} for name, mask in masks.items()} | {"both masks": masks}

    def hybrid(impl, *qkv, **options):
        return hybrid_attention(*qkv, inputs.mode, **inputs.options, **options, impl=impl)

    def with_lse(impl, *qkv, **options):
        out, lse = hybrid(impl, *qkv, return_lse=True, **options)
        return out, jnp.where(jnp.isfinite(lse), lse, 0.0)

    def routed(impl, *qkvz, **options):
        return routed_attention(*qkvz, **inputs.options, **options, impl=impl)

    def dual(impl, *qkv, **options):
        return dual_attention(*qkv, **inputs.options, **options, impl=impl)

    yield "hybrid", hybrid, d_out, qkv
    yield "hybrid and log-sum-exp", with_lse, (d_out, d_lse), qkv
    yield "routed", routed, d_out, (*qkv, inputs.z)
    yield "dual", dual, (d_out, d_out * 0.5), qkv
    for name, given in every.items():
        yield f"hybrid, {name}", partial(hybrid, **given), d_out, qkv
        yield f"routed, {name}", partial(routed, **given), d_out, (*qkv, inputs.z)
    yield "hybrid and log-sum-exp, both masks", partial(with_lse, **masks), (d_out, d_lse), qkv
    yield "dual, both masks", partial(dual, **masks), (d_out, d_out * 0.5), qkv


def compare(label: str, op: Callable, impl: str, cotangents: object, operands: tuple[jax.Array, ...]) -> dict:
    dtype = operands[0].dtype.name
    got, wanted = (with_gradients(partial(op, name), cotangents, *operands) for name in (impl, "reference"))
    errors = []
    for a, b in zip(got, wanted, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        errors.append(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())))
    passed = all(error <= TOLERANCE[dtype] for error in errors)
    record = {"case": label, "impl": impl, "dtype": dtype, "errors": errors, "passed": passed}
    print(json.dumps(record), flush=True)
    return record


def compare_selection(case: Case, dtype: str) -> dict:
    """Chosen blocks; sums that differ in their last bits may swap a block that stands at the threshold."""
    inputs = make_inputs(case, jnp.dtype(dtype))
    rows = {name: inputs.options[name] for name in ("lengths", "segment_ids")}

    def run(impl: str) -> np.ndarray:
        select = partial(select_blocks, stride=case.block // 8, block_size=case.block, impl=impl, **rows)
        return np.asarray(jax.jit(select)(3 * inputs.q, inputs.k))

    got, wanted = run("triton"), run("reference")
    swapped = float((got != wanted).sum() / wanted.sum())
    record = {"case": f"select: {case.name}", "impl": "triton", "dtype": dtype, "errors": [swapped]}
    record["passed"] = swapped <= 0.002
    print(json.dumps(record), flush=True)
    return record


def check_everything(capability: int) -> list[dict]:
    records = []

    def check(case: Case, dtype: str, impl: str, only: tuple[str, ...] = ()) -> None:
        inputs = make_inputs(case, jnp.dtype(dtype))
        for name, op, cotangents, operands in ops(inputs, case):
            if not only or name in only:
                records.append(compare(f"{name}: {case.name}", op, impl, cotangents, operands))

    for case in [*CASES, *WIDE]:
        for dtype in TOLERANCE:
            check(case, dtype, "triton")
            records.append(compare_selection(case, dtype))
    if capability == 90:
        for case in HOPPER:
            for dtype in ("bfloat16", "float16"):
                check(case, dtype, "mosaic_gpu", only=("hybrid", "hybrid and log-sum-exp"))
    return records


def time_everything(capability: int, lengths: list[int], rounds: int) -> KernelReport | None:
    """Prints the tables of `bench kernel`; None where it refuses, for the checks are worth keeping all the same."""
    timing = BenchKernelSettings(
        model="llama-3.1-8b",
        dtype="bfloat16",
        lengths=tuple(lengths),
        impls=("mosaic_gpu", "triton") if capability == 90 else ("triton",),
        rounds=rounds,
    )
    try:
        report = measure_kernels(timing)
    except ConfigError as error:
        print(error)
        return None
    for step in timing.steps:
        Console().print(kernel_table(report, step))
    print("\n".join([*report.left_out, *report.failed]))
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 65536], help="in tokens")
    parser.add_argument("--rounds", type=int, default=5, help="timed samples of each program")
    parser.add_argument("--skip-checks", action="store_true", help="time only")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    settings = parser.parse_args()
    capability = nvidia_capability()
    if capability is None or capability < 80:
        print(f"This needs an NVIDIA GPU from compute capability 8.0; the device is {jax.devices()[0]}.")
        return 2
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "capability": capability, "jax": jax.__version__}), flush=True)
    checks = [] if settings.skip_checks else check_everything(capability) + check_decode()
    failed = [record["case"] for record in checks if not record["passed"]]
    report = None if failed else time_everything(capability, settings.lengths, settings.rounds)
    decoding = [] if failed else time_decode(settings.rounds)
    if settings.out is not None:
        settings.out.write_text(
            json.dumps(
                {"device": device, "checks": checks, "times": report and asdict(report), "decoding": decoding}, indent=1
            )
            + "\n"
        )
    if failed:
        print(f"{len(failed)} of {len(checks)} checks failed: {failed}")
    return int(report is None or bool(report.failed))


if __name__ == "__main__":
    sys.exit(main())

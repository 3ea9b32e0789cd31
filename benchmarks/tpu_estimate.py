"""The TPU compiler's own estimate of the attention kernels, without a TPU: `python benchmarks/tpu_estimate.py`.

Needs the extra `tpu-aot`. The compiler runs the scalar code of a kernel, unrolls its grid and adds up the cycles of
its instructions and a model of its copies. That is an estimate, not a measurement: memory is modelled too fast, and
run-time scalars count as 0. So what they decide (modes, segment starts; the visited blocks of splash attention) is
baked in as a constant, and all operands are held in HBM, for which alone the model knows every copy.

One KV head with four query heads of 128, as in Llama-3.1-8B. Stock kernels: the best block sizes of some.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

CHIPS = {"v6e": ("v6e:1x1", 1.75), "v5e": ("v5e:1x1", 1.5)}
"""Topology and clock in GHz."""
GROUPS, HEAD_DIM, BLOCK, SINK, LOCAL = 4, 128, 128, 1, 16
STREAMING_OF_TEN = 7
STOCK_BLOCKS = (1024, 1024, 512)
"""Block sizes of queries, of keys, and of keys computed at a time: of nine choices the best for both stock kernels."""


def kept_blocks(tokens: int, streaming: bool) -> int:
    """Blocks that a head visits."""
    blocks = np.arange(1, tokens // BLOCK + 1)
    return int((np.minimum(blocks, SINK + LOCAL) if streaming else blocks).sum())


def in_hbm(*arrays: Any) -> list[Any]:
    from jax.experimental.pallas import tpu as pltpu

    return [pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in arrays]


def ours(kernel: str, tokens: int, stack: ExitStack) -> tuple[Any, list[tuple]]:
    """Hybrid attention with its modes baked in, and the shapes of its operands."""
    import jax.numpy as jnp

    from pallas_kernels import hybrid_attention
    from pallas_kernels.hybrid_attention import tpu
    from pallas_kernels.tpu import forward, plan, sweep

    heads, streaming = {"full": (1, 0), "streaming": (1, 1), "mixture": (10, STREAMING_OF_TEN)}[kernel]

    def is_sparse(tables: Any, head: Any, *_: Any) -> Any:
        return head < streaming

    def launch(q: Any, k: Any, v: Any, tables: Any, *rest: Any) -> Any:
        arguments = [*in_hbm(q, k, v), type(tables)(*in_hbm(*tables)), *rest]
        return forward.attention_forward(*arguments)

    stack.enter_context(patch.object(sweep, "is_sparse", is_sparse))
    stack.enter_context(patch.object(plan, "segment_start", lambda tables, head, block, layout: jnp.zeros_like(block)))
    stack.enter_context(patch.object(tpu, "attention_forward", launch))

    def run(q: Any, k: Any, v: Any) -> Any:
        mode = jnp.zeros((1, heads), jnp.int32)
        return hybrid_attention(q, k, v, mode, sink_blocks=SINK, local_blocks=LOCAL, block_size=BLOCK, impl="tpu")

    return run, [(1, tokens, GROUPS * heads, HEAD_DIM), *[(1, tokens, heads, HEAD_DIM)] * 2]


def flash(tokens: int) -> tuple[Any, list[tuple]]:
    """It knows no shared KV heads: four of them."""
    from jax.experimental.pallas.ops.tpu import flash_attention as stock

    q, k, compute = STOCK_BLOCKS
    blocks = stock.BlockSizes(block_q=q, block_k_major=k, block_k=compute, block_b=1)

    def run(*operands: Any) -> Any:
        out = stock.flash_attention(*in_hbm(*operands), causal=True, sm_scale=HEAD_DIM**-0.5, block_sizes=blocks)
        return in_hbm(out)[0]

    return run, [(1, GROUPS, tokens, HEAD_DIM)] * 3


def splash(tokens: int, stack: ExitStack) -> tuple[Any, list[tuple]]:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as stock
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    q, k, compute = STOCK_BLOCKS
    mask = masks.MultiHeadMask([masks.CausalMask((tokens, tokens))] * GROUPS)
    blocks = stock.BlockSizes(block_q=q, block_kv=k, block_kv_compute=compute)
    kernel = stock.make_splash_mqa_single_device(mask, block_sizes=blocks)

    def causal(head: Any, i: Any, j: Any, *_: Any, **__: Any) -> tuple:
        """(block to load, its mask, whether it is computed, whether it is whole) by arithmetic instead of by table."""
        return j, None, j * k <= i * q + q - 1, j * k + k - 1 <= i * q

    stack.enter_context(patch.object(stock, "_next_nonzero", causal))
    return lambda *operands: in_hbm(kernel(*in_hbm(*operands)))[0], [(GROUPS, tokens, HEAD_DIM), *[(tokens, 128)] * 2]


def compile_one(chip: str, kernel: str, tokens: int) -> None:
    """Compiles in this process, which the profiler may abort; the estimate lands in the folder that the flag names."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=CHIPS[chip][0], chips_per_host_bounds=(1, 1, 1)
    )
    device = topology.devices[0]
    mesh = jax.sharding.Mesh(np.array([device]), ("chip",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    abstract = jax.sharding.AbstractDevice(device_kind=device.device_kind, num_cores=device.num_cores, platform="tpu")
    with ExitStack() as stack:
        if kernel == "flash":
            run, shapes = flash(tokens)
        elif kernel == "splash":
            run, shapes = splash(tokens, stack)
        else:
            run, shapes = ours(kernel, tokens, stack)
        stack.enter_context(jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=abstract)))
        operands = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
        jax.jit(run).lower(*operands).compile()


def estimate(chip: str, kernel: str, tokens: int) -> int:
    """Cycles of the kernel.

    Raises:
        RuntimeError: the compiler refused it, or made no estimate.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={folder}",
        }
        job = json.dumps([chip, kernel, tokens])
        done = subprocess.run(
            [sys.executable, __file__, "--one", job], env=environment, capture_output=True, text=True, check=False
        )
        text = "".join(path.read_text() for path in Path(folder).glob("*.textproto"))
    found = re.findall(r'hlo_op_name: "[^"]*(?:attention|splash)[^"]*"\s+estimated_cycles: (\d+)', text)
    if done.returncode or not found:
        reason = re.search(r".*(?:failed:|Error|EXHAUSTED).*", done.stderr)
        raise RuntimeError(f"{kernel} on {chip}: {reason[0] if reason else done.stderr[-500:]}")
    return max(map(int, found))


def table(chip: str, tokens: int, cycles: dict[str, int]) -> str:
    """The estimate of a chip in Markdown, against its targets."""
    full, streaming = cycles["full"], cycles["streaming"]
    share = kept_blocks(tokens, True) / kept_blocks(tokens, False)
    parts = (10 - STREAMING_OF_TEN) * full + STREAMING_OF_TEN * streaming
    rows = [
        (
            "all heads full",
            full,
            f"{full / cycles['flash']:.2f} of flash, {full / cycles['splash']:.2f} of splash",
            "1",
        ),
        ("streaming", streaming, f"{streaming / (share * full):.2f} of its share ({share:.3f}) of full", "1.1"),
    ]
    if "mixture" in cycles:
        mixture = cycles["mixture"]
        rows.append(
            (f"10 KV heads, {STREAMING_OF_TEN} streaming", mixture, f"{mixture / parts:.2f} of its parts", "1.15")
        )
    rows += [(f"stock {name}", cycles[name], "", "") for name in ("flash", "splash")]
    for name, base, is_streaming in (("full", full, False), ("streaming", streaming, True)):
        scaled = round(base * kept_blocks(65536, is_streaming) / kept_blocks(tokens, is_streaming))
        rows.append((f"{name} at 65,536 tokens, by block counts", scaled, "", ""))
    lines = [f"| {chip}, {tokens:,} tokens | cycles | ms | ratio | at most |", "|---|---|---|---|---|"]
    clock = CHIPS[chip][1] * 1e6
    return "\n".join(
        lines + [f"| {name} | {n:,} | {n / clock:.3f} | {text} | {most} |" for name, n, text, most in rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", nargs="+", choices=CHIPS, default=list(CHIPS))
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--no-mixture", action="store_true", help="leave out the slowest program, ten KV heads")
    parser.add_argument(
        "--out",
        type=Path,
        help="also write the cycles here, as JSON; goes on from what it has (remove it after a change)",
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        compile_one(*json.loads(arguments.one))
        return
    if arguments.tokens % 1024:
        parser.error(f"--tokens is {arguments.tokens}; wanted a multiple of 1024, the largest block of stock kernels")
    if find_spec("libtpu") is None:
        parser.error("libtpu is not installed; pip install 'elastic-jax[tpu-aot]' to compile for TPU")
    names = ["full", "streaming", "flash", "splash"] + ([] if arguments.no_mixture else ["mixture"])
    result: dict[str, Any] = {
        "label": "static estimate of the TPU compiler; not run on a TPU",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "libtpu")},
        "tokens": arguments.tokens,
        "cycles": {chip: {} for chip in arguments.chips},
    }
    if arguments.out and arguments.out.exists():
        earlier = json.loads(arguments.out.read_text())
        if {**earlier, "cycles": None} != {**result, "cycles": None}:
            parser.error(f"{arguments.out} holds other versions or another number of tokens; name another file")
        result["cycles"] |= earlier["cycles"]
    missing = [(c, n) for c, n in itertools.product(arguments.chips, names) if n not in result["cycles"][c]]
    for chip, name in tqdm(missing, unit="program", disable=None):
        result["cycles"][chip][name] = estimate(chip, name, arguments.tokens)
        if arguments.out:
            partial = arguments.out.with_suffix(".partial")
            partial.write_text(json.dumps(result, indent=2) + "\n")
            partial.replace(arguments.out)
    print(f"{result['label']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}")
    for chip in arguments.chips:
        print("\n" + table(chip, arguments.tokens, result["cycles"][chip]))


if __name__ == "__main__":
    main()

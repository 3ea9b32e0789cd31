"""Attention ops on a mesh of four simulated devices, by batch and heads, started by `programs.reports`.

Prints as JSON, for each op ("hybrid", "routed",
"dual" or "select"), the largest difference from the same op on one device, and the collectives of the divided program.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Case, make_inputs, random_block_masks
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import dual_attention, hybrid_attention, routed_attention, select_blocks

COLLECTIVES = r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def main(names: list[str]) -> None:
    case = Case("mesh", 100, kv_heads=2, groups=3, batch=2, local=1, lengths=(100, 70))
    inputs = make_inputs(case)
    static = {name: x for name, x in inputs.options.items() if name not in ("lengths", "segment_ids")}
    mask = random_block_masks(case)[0]
    mesh = Mesh(np.reshape(jax.devices(), (2, 2)), ("data", "tensor"))
    by_heads, by_mode, by_row = (
        PartitionSpec("data", None, "tensor"),
        PartitionSpec("data", "tensor"),
        PartitionSpec("data"),
    )

    def gradients(attend: Callable) -> Callable:
        def run(*operands):
            out, pull = jax.vjp(lambda *a: attend(*a, *operands[4:]), *operands[:4])
            return out, pull(out)

        return run

    def hybrid(q, k, v, z, lengths, mask):
        mode, masks = (z < 0.5).astype(jnp.int8), {"lengths": lengths, "block_mask": mask}
        return hybrid_attention(q, k, v, mode, **masks, return_lse=True, impl="xla", **static)[0]

    def routed(q, k, v, z, lengths, mask):
        return routed_attention(q, k, v, z, lengths=lengths, impl="xla", **static)

    def dual(q, k, v, z, lengths, mask):
        return dual_attention(q, k, v, lengths=lengths, full_block_mask=mask, impl="xla", **static)

    def select(q, k, v, z, lengths, mask):
        return select_blocks(q, k, heads=z < 0.5, lengths=lengths, stride=4, block_size=case.block, impl="xla")

    operands = (inputs.q, inputs.k, inputs.v, inputs.z, inputs.options["lengths"], mask)
    specs = (by_heads, by_heads, by_heads, by_mode, by_row, by_mode)
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(operands, specs, strict=True)]
    ops = {"hybrid": gradients(hybrid), "routed": gradients(routed), "dual": gradients(dual), "select": select}
    for name in names:
        run = jax.jit(ops[name])
        wanted, compiled = run(*operands), run.lower(*placed).compile()
        errors = jax.tree.map(
            lambda a, b: float(np.abs(np.asarray(a, float) - np.asarray(b)).max()), compiled(*placed), wanted
        )
        found = sorted(set(re.findall(COLLECTIVES, compiled.as_text())))
        print(json.dumps({"op": name, "error": max(jax.tree.leaves(errors)), "collectives": found}))


if __name__ == "__main__":
    main(sys.argv[1:])

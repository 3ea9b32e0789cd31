"""Plans as text and as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from train.plan.chips import GIB
from train.plan.compile import Compiled
from train.plan.search import FILLED, RunPlan

_PARTS = (
    ("weights", "weights (frozen)"),
    ("routers", "routers"),
    ("optimizer", "optimizer and gradient"),
    ("batch", "batch"),
    ("layer_inputs", "layer inputs kept"),
    ("gathered", "weights gathered for a layer"),
    ("keys_and_values", "keys and values of whole rows"),
    ("attention", "else for attention"),
    ("mlp", "MLP (not with attention)"),
    ("head", "vocabulary head (not with a layer)"),
)


def plan_values(plan: RunPlan, price: float | None) -> dict[str, Any]:
    """A plan as JSON has it; bytes are those of one device."""
    work = plan.work
    values = {
        "topology": plan.topology.name,
        "devices": plan.mesh.size,
        "mesh": dict(plan.mesh.shape),
        "slices": plan.config.mesh.slices,
        "rows": plan.config.optim.rows,
        "accumulate": plan.config.optim.accumulate,
        "remat": plan.config.remat,
        "weights": plan.config.weights,
        "bytes": plan.memory._asdict() | {"total": plan.memory.total},
        "limit_bytes": round(plan.topology.chip.memory * GIB),
        "fits": plan.fits,
        "vector_memory_bytes": plan.kernels,
        "step": work._asdict(),
        "overrides": overrides(plan),
    }
    if price is not None:
        chips = plan.topology.chips * plan.config.mesh.slices
        step = work.seconds / 3600 * chips * price
        values["price"] = {
            "step": step,
            "per_1000_tokens": step / work.tokens * 1000,
            "run": step * plan.config.optim.steps,
        }
    return values


def overrides(plan: RunPlan) -> list[str]:
    """Flags that make `train router` run as planned, also over a recipe that sets the mesh otherwise."""
    config = plan.config
    flags = [f"--mesh.{axis}={size}" for axis, size in asdict(config.mesh).items()]
    return [
        *flags,
        f"--optim.rows={config.optim.rows}",
        f"--optim.accumulate={config.optim.accumulate}",
        f"--remat={config.remat}",
    ]


def plan_text(plan: RunPlan, price: float | None) -> str:
    """A plan as a table."""
    values, memory, work = plan_values(plan, price), plan.memory, plan.work
    chip = plan.topology.chip
    mesh = " ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
    tokens = plan.config.data.row_length
    lines = [
        f"{plan.topology.name}: {plan.mesh.size} devices as {mesh}"
        + (f", {plan.config.mesh.slices} slices" if plan.config.mesh.slices > 1 else ""),
        f"{plan.config.optim.rows} rows x {plan.config.optim.accumulate} micro-batches of {tokens:,} tokens, "
        f"remat {plan.config.remat}" + (", weights int8" if plan.config.weights == "int8" else ""),
        "",
        "GiB on each device (estimate)",
        *(f"  {label:<36}{getattr(memory, name) / GIB:8.2f}" for name, label in _PARTS),
        f"  {'at most':<36}{memory.total / GIB:8.2f} of {chip.memory}",
    ]
    if memory.host:
        lines.append(f"  {'on the host, for each device':<36}{memory.host / GIB:8.2f} of about {chip.host:g}")
    if plan.kernels:
        forward, backward, limit = (plan.kernels[name] / 2**20 for name in ("forward", "backward", "limit"))
        lines += ["", f"vector memory: forward kernel {forward:.1f} MiB, backward {backward:.1f}, of {limit:.0f}"]
    saved = 1 - work.attention_flops / work.full_attention_flops
    flops = work.matrix_flops + work.attention_flops
    lines += [
        "",
        "one step (estimate)",
        f"  {flops:.3g} FLOPs, {work.attention_flops / flops:.0%} of them attention, whose routing saves {saved:.0%}",
        f"  {work.received / GIB:.1f} GiB received by each device",
        f"  {work.seconds:.1f} s, {work.tokens / work.seconds:,.0f} tokens/s",
    ]
    if price is not None:
        cost = values["price"]
        lines.append(
            f"  price {cost['per_1000_tokens']:.3g} for 1,000 tokens, {cost['step']:.3g} a step, {cost['run']:,.2f} "
            f"for {plan.config.optim.steps} steps"
        )
    lines += ["", "fits" if plan.fits else f"does not fit: {_shortage(plan)}"]
    return "\n".join(lines)


def _shortage(plan: RunPlan) -> str:
    chip, host = plan.topology.chip, plan.memory.host / GIB
    over = plan.memory.total / GIB - FILLED * chip.memory
    if over > 0:
        return (
            f"{over:.1f} GiB too much on each device, of which an estimate may fill {FILLED:.0%}. Try --search, remat, "
            "fewer rows in a micro-batch, more chips."
        )
    return f"{host:.1f} GiB of host memory for each device, of about {chip.host:g}."


def compiled_text(compiled: Compiled) -> str:
    """What the compiler says."""
    if compiled.refusal:
        return f"the TPU compiler refuses it after {compiled.seconds:.0f} s: {compiled.refusal}"
    found = ", ".join(f"{count} {name}" for name, count in compiled.collectives.items()) or "none"
    return "\n".join(
        [
            f"TPU compiler, {compiled.seconds:.0f} s; GiB on each device",
            f"  {'at most':<36}{compiled.total / GIB:8.2f}",
            f"  {'arguments among them':<36}{compiled.arguments / GIB:8.2f}",
            f"  {'on the host, for each device':<36}{compiled.host / GIB:8.2f}",
            f"  collectives in the program: {found}",
            f"  {compiled.flops:.3g} FLOPs and {compiled.bytes_accessed:.3g} bytes on each device, bodies of loops "
            "counted once",
        ]
    )

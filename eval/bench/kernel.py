"""Speed of the attention ops on the device at hand: every sparsity and every dense rival in one run, taking turns."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from elastic_jax.errors import ConfigError
from eval.bench.dense import dense_kernels
from eval.bench.torch import threads, torch_process
from eval.bench.work import MODELS, HeadShape, hybrid_flops, routed_flops, selection_flops, spread_heads
from eval.harness.timing import seconds, take_turns
from pallas_kernels import hybrid_attention, routed_attention, select_blocks

if TYPE_CHECKING:
    from eval.bench.settings import BenchKernelSettings

SHORTEST_SAMPLE, MOST_CALLS = 0.02, 100
"""Seconds that a timed sample lasts at least, by calls in a row: a single launch on a GPU is shorter than its start."""
DENSE = "dense"


@dataclass(frozen=True)
class KernelSpeed:
    """One program at one length."""

    op: str
    """"hybrid", "routed", "select_blocks" or "dense"."""
    implementation: str
    step: str
    tokens: int
    msr: float | None
    """Share of the KV heads that are sparse; for `select_blocks`, that choose blocks; None for a dense rival."""
    seconds: float
    """Of the fastest sample."""
    samples: list[float]
    tflops: float
    """Useful work (see `eval.bench.work`), in 10^12 operations a second."""
    of_ideal: float | None
    """Time of our own full attention in the same step times the share of its work that this does, over the time."""
    against_dense: float | None
    """Time of the fastest dense rival in the same step over this time."""


@dataclass
class KernelReport:
    """Everything that a run measured, and what it could not."""

    device: str
    model: str
    dtype: str
    jax: str = jax.__version__
    speeds: list[KernelSpeed] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """What this machine or an implementation does not offer, and why."""
    failed: list[str] = field(default_factory=list)
    """What of ours should have run and did not."""

    def note(self, program: Plan | Timed, tokens: int, error: Exception) -> None:
        """Files the reason why a program is missing."""
        missing = program.op == DENSE or isinstance(error, NotImplementedError)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        (self.left_out if missing else self.failed).append(f"{_label(program)} at {tokens:,} tokens: {reason}")


@dataclass(frozen=True)
class Case:
    """Attention of one layer on one sequence of random tokens."""

    shape: HeadShape
    tokens: int
    dtype: str
    sparse_heads: tuple[int, ...]
    """Numbers of sparse KV heads that are measured; 0, all of them full, is what the others are compared with."""

    def qkv_shapes(self) -> list[tuple[int, ...]]:
        """Shapes `[1, tokens, heads, head_dim]` of queries, keys and values."""
        heads = (self.shape.query_heads, self.shape.kv_heads, self.shape.kv_heads)
        return [(1, self.tokens, n, self.shape.head_dim) for n in heads]


@dataclass(frozen=True)
class Plan:
    """A program to compile once for a case; the number of sparse heads is part of its data."""

    op: str
    implementation: str
    step: str
    function: Callable[..., Any]
    prepare: Callable[..., Any] = lambda *operands: operands
    least_bytes: int = 0


@dataclass(frozen=True)
class Timed:
    """A program with its data: what it does, and how to time it."""

    op: str
    implementation: str
    step: str
    msr: float | None
    flops: float
    sample: Callable[[int], float]
    """Seconds of one call, from so many in a row."""


def measure_kernels(settings: BenchKernelSettings) -> KernelReport:
    """Times our ops and the dense rivals at every length that the settings name.

    Raises:
        ConfigError: a program of ours needs more memory than there is, or none of them runs here.
    """
    platform = jax.default_backend()
    model = settings.model or ("smollm2-135m" if platform == "cpu" else "llama-3.1-8b")
    dtype = settings.dtype or ("float32" if platform == "cpu" else "bfloat16")
    lengths = settings.lengths or ((2048, 4096) if platform == "cpu" else (4096, 16384, 65536))
    shape = MODELS[model]
    counts = tuple(sorted({0, *(round(share * shape.kv_heads) for share in settings.sparse)}))
    cases = [Case(shape, tokens, dtype, counts) for tokens in lengths]
    report = KernelReport(jax.devices()[0].device_kind, model, dtype)
    plans = {case: [*our_plans(settings), *rival_plans(settings.steps, platform, case)] for case in cases}
    report.speeds += measure(
        plans, report, rounds=settings.rounds, torch_python=settings.torch_python, torch_steps=settings.steps
    )
    return report


def measure(
    plans: Mapping[Case, Sequence[Plan]],
    report: KernelReport,
    *,
    rounds: int,
    torch_python: str | None = None,
    torch_steps: Sequence[str] = (),
) -> list[KernelSpeed]:
    """Compiles the programs of all cases, refuses what does not fit, then times case by case.

    Args:
        report: gets the reasons why programs are missing.
        torch_python: a Python whose torch attention takes turns with ours, in each of `torch_steps`.

    Raises:
        ConfigError: a program of ours needs more memory than there is, or none of them runs here.
    """
    with ExitStack() as stack:
        ask = None
        if torch_python is not None:
            ask = stack.enter_context(torch_process(torch_python, "torch_attention.py"))
        with _progress(sum(map(len, plans.values())), "Compiling") as advance:
            compiled = {case: _compile(planned, case, report, advance) for case, planned in plans.items()}
        _check_memory(compiled, report)
        if not any(plan.op != DENSE for programs in compiled.values() for plan, _ in programs):
            raise ConfigError("no kernel of ours runs here:\n  " + "\n  ".join([*report.failed, *report.left_out]))
        speeds = []
        for case, programs in compiled.items():
            timed = list(_bind(programs, case))
            if ask is not None:
                timed += _torch_programs(torch_steps, ask, case)
            speeds += _measure(timed, case.tokens, rounds, report)
            timed.clear()  # frees the operands before those of the next case are made
    return speeds


def our_plans(settings: BenchKernelSettings) -> Iterator[Plan]:
    """Our ops; hybrid attention always, since the others are judged by its time with all heads full."""
    for impl in settings.impls:
        for step in settings.steps:
            attend = partial(hybrid_attention, impl=impl)
            yield Plan("hybrid", impl, step, with_gradients(attend, 3) if step == "training" else attend)
            if step == "training" and "routed" in settings.ops:
                yield Plan("routed", impl, step, with_gradients(partial(routed_attention, impl=impl), 4))
            if step == "forward" and "select_blocks" in settings.ops:
                yield Plan("select_blocks", impl, step, partial(_select, impl=impl))


def rival_plans(steps: Sequence[str], platform: str, case: Case) -> Iterator[Plan]:
    """Dense attention by others."""
    for kernel in dense_kernels(platform, case.shape, case.tokens):
        for step in steps:
            function = with_gradients(kernel.attend, 3) if step == "training" else kernel.attend
            yield Plan(DENSE, kernel.name, step, function, kernel.prepare, kernel.least_bytes)


def with_gradients(attend: Callable[..., Any], count: int) -> Callable[..., Any]:
    """Output and gradients of the first `count` operands; the cotangent is the queries, which have its shape."""

    def train(*operands: jax.Array) -> Any:
        out, pull = jax.vjp(lambda *parts: attend(*parts, *operands[count:]), *operands[:count])
        return out, pull(operands[0].astype(out.dtype))

    return train


def _select(q: jax.Array, k: jax.Array, heads: jax.Array, *, impl: str) -> jax.Array:
    return select_blocks(q, k, heads=heads, impl=impl)


def _operands(plan: Plan, shape: HeadShape, qkv: Sequence[jax.Array], sparse_heads: int) -> tuple[Any, ...]:
    """Arguments of a program."""
    q, k, v = qkv
    sparse = jnp.array([spread_heads(shape.kv_heads, sparse_heads)])
    match plan.op:
        case "hybrid":
            return q, k, v, sparse.astype(jnp.int8)
        case "routed":
            return q, k, v, 1.0 - sparse.astype(jnp.float32)
        case "select_blocks":
            return q, k, sparse > 0
    return plan.prepare(q, k, v)


def _compile(
    plans: Sequence[Plan], case: Case, report: KernelReport, advance: Callable[[], None]
) -> list[tuple[Plan, jax.stages.Compiled]]:
    """The programs that this machine can run; why it cannot run the others goes to the report."""
    qkv = [jax.ShapeDtypeStruct(shape, case.dtype) for shape in case.qkv_shapes()]
    programs = []
    for plan in plans:
        if plan.least_bytes > free_bytes():
            report.left_out.append(_too_large(plan, case.tokens, plan.least_bytes))
            advance()
            continue
        try:
            operands = jax.eval_shape(partial(_operands, plan, case.shape, sparse_heads=0), qkv)
            programs.append((plan, jax.jit(plan.function).lower(*operands).compile()))
        except Exception as error:  # what one kernel cannot do must not end the table of the others
            report.note(plan, case.tokens, error)
        advance()
    return programs


def _check_memory(compiled: dict[Case, list[tuple[Plan, jax.stages.Compiled]]], report: KernelReport) -> None:
    """Refuses programs of ours that do not fit; rivals that do not fit are left out."""
    free, too_large = free_bytes(), []
    for case, programs in compiled.items():
        for program in list(programs):
            need = program_bytes(program[1])
            if need <= free:
                continue
            line = _too_large(program[0], case.tokens, need)
            if program[0].op == DENSE:
                report.left_out.append(line)
                programs.remove(program)
            else:
                too_large.append(line)
    if too_large:
        raise ConfigError(
            f"{free / 2**30:.1f} GiB of memory are free, but " + ", ".join(too_large) + ". Ask for shorter --lengths "
            "(bench attention: --tokens and --sparse-tokens), for fewer heads, or for --steps forward."
        )


def _too_large(plan: Plan, tokens: int, need: int) -> str:
    return f"{_label(plan)} at {tokens:,} tokens needs {need / 2**30:.1f} GiB"


def program_bytes(program: jax.stages.Compiled) -> int:
    """Arguments, results and everything in between, as the compiler counts them."""
    sizes: Any = program.memory_analysis()
    return (
        0 if sizes is None else sum(getattr(sizes, f"{part}_size_in_bytes") for part in ("argument", "output", "temp"))
    )


def free_bytes() -> int:
    """Memory that the default device can still give."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bind(programs: list[tuple[Plan, jax.stages.Compiled]], case: Case) -> Iterator[Timed]:
    """The programs with data: one for each number of sparse heads."""
    keys = jax.random.split(jax.random.key(0), 3)
    qkv = [jax.random.normal(key, shape, case.dtype) for key, shape in zip(keys, case.qkv_shapes(), strict=True)]
    prepared: dict[str, tuple[Any, ...]] = {}
    for plan, program in programs:
        if plan.op == DENSE:
            if plan.implementation not in prepared:
                prepared[plan.implementation] = plan.prepare(*qkv)
            yield _timed(plan, program, prepared[plan.implementation], case, None)
            continue
        for count in case.sparse_heads:
            if count > 0 or plan.op != "select_blocks":
                yield _timed(plan, program, _operands(plan, case.shape, qkv, count), case, count)


def _timed(
    plan: Plan, program: jax.stages.Compiled, arguments: tuple[Any, ...], case: Case, sparse_heads: int | None
) -> Timed:
    match plan.op:
        case "routed":
            flops = routed_flops(case.shape, case.tokens, sparse_heads or 0)
        case "select_blocks":
            flops = selection_flops(case.shape, case.tokens, sparse_heads or 0)
        case _:
            flops = hybrid_flops(case.shape, case.tokens, sparse_heads or 0, training=plan.step == "training")
    msr = None if sparse_heads is None else sparse_heads / case.shape.kv_heads

    def sample(calls: int) -> float:
        return seconds(program, *arguments, calls=calls)

    return Timed(plan.op, plan.implementation, plan.step, msr, flops, sample)


def _torch_programs(steps: Sequence[str], ask: Callable[..., Any], case: Case) -> Iterator[Timed]:
    """Torch's fused attention, and on a GPU its FlexAttention, on the same device as ours."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    shape_q, shape_kv = ([1, heads, tokens, width] for _, tokens, heads, width in case.qkv_shapes()[:2])
    alike = {"device": device, "shape_q": shape_q, "shape_kv": shape_kv, "dtype": case.dtype, "threads": threads()}
    for kernel, name in (("sdpa", "torch SDPA"), ("flex", "torch FlexAttention"))[: 2 if device == "cuda" else 1]:
        for step in steps:
            training = step == "training"
            job = alike | {"kernel": kernel, "training": training}

            def sample(calls: int, job=job) -> float:
                return ask(job | {"calls": calls})["seconds"]

            yield Timed(DENSE, name, step, None, hybrid_flops(case.shape, case.tokens, 0, training=training), sample)


def _measure(programs: list[Timed], tokens: int, rounds: int, report: KernelReport) -> list[KernelSpeed]:
    """Times the programs of one length in turns."""
    turns: dict[int, Callable[[], float]] = {}
    with _progress(len(programs) * (rounds + 1), f"{tokens:,} tokens") as advance:
        for index, program in enumerate(programs):
            try:
                program.sample(1)
                calls = max(1, min(MOST_CALLS, math.ceil(SHORTEST_SAMPLE / program.sample(1))))
                turns[index] = partial(program.sample, calls)
            except Exception as error:  # as in _compile
                report.note(program, tokens, error)
            advance()
        times = take_turns(turns, rounds, advance)
    fastest = {index: min(samples) for index, samples in times.items()}

    full = {
        (program.implementation, program.step): (spent, program.flops)
        for index, spent in fastest.items()
        if (program := programs[index]).op == "hybrid" and program.msr == 0
    }
    speeds = []
    for index, spent in fastest.items():
        program = programs[index]
        full_spent, full_flops = full.get((program.implementation, program.step), (None, 1.0))
        rivals = [fastest[i] for i in fastest if programs[i].op == DENSE and programs[i].step == program.step]
        speeds.append(
            KernelSpeed(
                op=program.op,
                implementation=program.implementation,
                step=program.step,
                tokens=tokens,
                msr=program.msr,
                seconds=spent,
                samples=times[index],
                tflops=program.flops / spent / 1e12,
                of_ideal=None if full_spent is None else full_spent * program.flops / full_flops / spent,
                against_dense=min(rivals) / spent if rivals else None,
            )
        )
    return speeds


def _label(program: Plan | Timed) -> str:
    return f"{program.op} ({program.implementation}, {program.step})"


@contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)

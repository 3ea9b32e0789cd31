"""Comparisons of `bench attention`: pairs of the programs of `bench kernel`, at two sequence lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from elastic_jax.errors import ConfigError
from eval.bench.kernel import DENSE, Case, KernelReport, KernelSpeed, Plan, measure, with_gradients
from eval.bench.work import HeadShape
from pallas_kernels import hybrid_attention, routed_attention

if TYPE_CHECKING:
    from eval.bench.settings import BenchAttentionSettings

MIXTURE_KV_HEADS, MIXTURE_SPARSE = 10, 7
"""KV heads of the mixture, and how many of them are sparse."""
_FORWARD = Plan("hybrid", "auto", "forward", hybrid_attention)
_TRAINING = (
    Plan("hybrid", "auto", "training", with_gradients(hybrid_attention, 3)),
    Plan("routed", "auto", "training", with_gradients(routed_attention, 4)),
)


@dataclass(frozen=True)
class AttentionSpeed:
    """Two programs that were timed in turns."""

    compared: str
    tokens: int
    seconds: float
    baseline_seconds: float
    allowed: float | None = None
    """Speed-up that the skipped work allows."""

    def line(self) -> str:
        """The comparison in words."""
        speed_up = self.baseline_seconds / self.seconds
        line = f"{self.compared}, {self.tokens:,} tokens: {self.seconds:.3f} s against {self.baseline_seconds:.3f} s"
        line += f": {speed_up:.2f}x"
        if self.allowed is not None:
            line += f", {speed_up / self.allowed:.2f} of the {self.allowed:.2f}x that the skipped work allows"
        return line


def compare_attention(settings: BenchAttentionSettings) -> list[AttentionSpeed]:
    """Full attention against torch's (where a Python with it is named), a mixture of 7 sparse KV heads in 10 against
    the same program with all heads full, and a training step of routed attention against one of full attention.

    Raises:
        ConfigError: a program cannot run here, or needs more memory than there is.
    """
    groups = settings.query_heads // settings.kv_heads
    shape = HeadShape(settings.query_heads, settings.kv_heads, settings.head_dim)
    mixed = HeadShape(MIXTURE_KV_HEADS * groups, MIXTURE_KV_HEADS, settings.head_dim)
    plain = Case(shape, settings.tokens, settings.dtype, (0,))
    mixture = Case(mixed, settings.sparse_tokens, settings.dtype, (0, MIXTURE_SPARSE))
    report = KernelReport(jax.devices()[0].device_kind, "", settings.dtype)
    mixture_speeds = measure({mixture: [_FORWARD]}, report, rounds=settings.rounds)
    with_torch = settings.torch_python is not None
    plain_speeds = measure(
        {plain: [_FORWARD, *_TRAINING] if with_torch else _TRAINING},
        report,
        rounds=settings.rounds,
        torch_python=settings.torch_python,
        torch_steps=("forward",),
    )
    missing = [*report.failed, *report.left_out]
    if missing:
        raise ConfigError("a program of the comparison is missing:\n  " + "\n  ".join(missing))
    full, sparse = mixture_speeds
    allowed = full.tflops * full.seconds / (sparse.tflops * sparse.seconds)
    training = {speed.op: speed for speed in plain_speeds if speed.step == "training"}
    compared = [
        _compare("70 % sparse / full", sparse, full, allowed),
        _compare("routed / full, forward + backward", training["routed"], training["hybrid"]),
    ]
    if with_torch:
        forward = {speed.op: speed for speed in plain_speeds if speed.step == "forward"}
        compared.insert(0, _compare("full attention / torch", forward["hybrid"], forward[DENSE]))
    return compared


def _compare(compared: str, speed: KernelSpeed, baseline: KernelSpeed, allowed: float | None = None) -> AttentionSpeed:
    return AttentionSpeed(compared, speed.tokens, speed.seconds, baseline.seconds, allowed)

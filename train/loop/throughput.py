"""Figures of speed and memory of a step, and a profile of chosen steps."""

from __future__ import annotations

from pathlib import Path

import jax

PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "Tesla T4": 65e12,
}
"""Dense bfloat16 FLOP/s of a device (float16 for T4), as its maker states them; a kind is found by its beginning."""


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of a device of this kind, None where it is not known."""
    fitting = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(fitting, key=len)] if fitting else None


def speed(tokens: float, seconds: float, flops: float | None) -> dict[str, float]:
    """Figures of a step of so many tokens and floating-point operations (over all devices).

    `mfu` is there where the device's peak is known, `device_memory_peak` (bytes, of the first device of this process
    since its start) where the backend tells it.
    """
    device = jax.local_devices()[0]
    figures = {"seconds": seconds, "tokens_per_second": tokens / seconds}
    if flops is not None:
        figures["flops_per_second"] = flops / seconds
        peak = peak_flops(device.device_kind)
        if peak is not None:
            figures["mfu"] = flops / seconds / (peak * jax.device_count())
    memory = device.memory_stats() or {}
    if "peak_bytes_in_use" in memory:
        figures["device_memory_peak"] = memory["peak_bytes_in_use"]
    return figures


class ProfileWindow:
    """Profiles the steps `window[0]` to `window[1]`; call `before` and `after` each step, and `close` at the end."""

    def __init__(self, window: tuple[int, int] | None, directory: Path):
        self._window, self._directory = window, directory
        self._running = False

    def before(self, step: int) -> None:
        if self._window is not None and step == self._window[0]:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int) -> None:
        if self._window is not None and step == self._window[1]:
            self.close()

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

"""Facts about this machine that decide what the library can do on it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any, Literal

import jax
from packaging.requirements import Requirement

from pallas_kernels.dispatch import nvidia_capability, preferred

DISTRIBUTION = "elastic-jax"
PLUGINS = ("jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "triton", "torch")
"""Packages that no user asks for by name and whose versions matter in a bug report."""
LOW_DISK = 2 * 2**30
Level = Literal["problem", "note"]


@dataclass(frozen=True)
class Finding:
    """Something the user should know: a problem to fix, or a note."""

    level: Level
    text: str


@dataclass(frozen=True)
class Backend:
    """One implementation of the kernels: whether it runs here, and why not."""

    name: str
    runs: bool
    reason: str


@dataclass(frozen=True)
class Report:
    """What `elastic-jax doctor` says; `as_dict` is its JSON form."""

    system: dict[str, str]
    versions: dict[str, str | None]
    """Installed version by distribution name; None where it is not installed."""
    devices: list[dict[str, Any]]
    backends: list[Backend]
    order: tuple[str, ...]
    """What `impl="auto"` tries, the best first."""
    caches: dict[str, str | None]
    findings: list[Finding]

    @property
    def healthy(self) -> bool:
        return all(finding.level != "problem" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"healthy": self.healthy}


def examine() -> Report:
    """Looks at the installed packages, the devices and the cache folders; starts the devices, compiles nothing."""
    requirements = base_requirements((installed(DISTRIBUTION) and metadata.requires(DISTRIBUTION)) or [])
    versions = {name: installed(name) for name in (*sorted(requirements), *PLUGINS)}
    devices = [_device(device) for device in jax.devices()]
    caches = _caches()
    findings = [
        *wrong_versions(requirements, versions),
        *wrong_pairs(versions),
        *_idle_accelerator(),
        *_cache_findings(caches),
    ]
    kernels = backends()
    order = tuple(name for name in preferred() if name in {kernel.name for kernel in kernels})
    return Report(_system(), versions, devices, kernels, order, caches, findings)


def base_requirements(lines: list[str]) -> dict[str, Requirement]:
    """Requirements of the package itself for this platform by name, without those of its extras."""
    parsed = map(Requirement, lines)
    return {r.name: r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})}


def installed(name: str) -> str | None:
    """Version of a distribution, None if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def wrong_versions(requirements: dict[str, Requirement], versions: dict[str, str | None]) -> list[Finding]:
    """A problem for each package that is missing or outside the range that the library declares."""
    found = []
    for name, requirement in requirements.items():
        version = versions[name]
        if version is None:
            found.append(Finding("problem", f"{name} is not installed. Install it: pip install '{requirement}'"))
        elif not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{name}{requirement.specifier}"
            found.append(
                Finding("problem", f"{name} {version} is installed; want {wanted}. Install it: pip install '{wanted}'")
            )
    return found


def wrong_pairs(versions: dict[str, str | None]) -> list[Finding]:
    """A problem for each pair of packages that must agree and does not."""
    found = []
    core = versions.get("jax")
    for name in ("jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        version = versions.get(name)
        if core is not None and version is not None and _release(version) != _release(core):
            found.append(
                Finding(
                    "problem",
                    f"{name} {version} is installed beside jax {core}; they come in pairs. "
                    f"Install one version of both: pip install '{name}=={core}'",
                )
            )
    return found


def backends() -> list[Backend]:
    """Every implementation of the kernels, and whether `impl=NAME` runs on the default device."""
    kind = jax.default_backend()
    capability = nvidia_capability()
    has_gpu = "no NVIDIA GPU is the default device" if capability is None else None
    old = None if capability is None or capability >= 80 else f"compute capability {capability / 10}; want 8.0 or more"
    other = None if capability in (None, 90) else f"compute capability {capability / 10}; want 9.0 (Hopper)"
    toolchain = None if util.find_spec("jax_triton") else "jax-triton is not installed (Linux only)"
    reasons = {
        "reference": None,
        "xla": None,
        "triton": has_gpu or old or toolchain,
        "mosaic_gpu": has_gpu or other,
        "tpu": None if kind == "tpu" else f"the default device is a {kind}",
    }
    return [Backend(name, reason is None, reason or "") for name, reason in reasons.items()]


def _release(version: str) -> tuple[str, ...]:
    """The first three numbers: a fourth one marks a rebuilt wheel of the same release."""
    return tuple(version.split(".")[:3])


def _system() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": str(os.cpu_count()),
        "elastic-jax": installed(DISTRIBUTION) or "not installed",
    }


def _device(device: jax.Device) -> dict[str, Any]:
    """Name, kind and, where the runtime tells, bytes of memory."""
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return {"id": device.id, "platform": device.platform, "kind": device.device_kind, "memory_bytes": memory}


def _caches() -> dict[str, str | None]:
    from huggingface_hub import constants

    compiled = jax.config.jax_compilation_cache_dir
    return {"compiled programs": compiled, "models of the hub": constants.HF_HUB_CACHE}


def _cache_findings(caches: dict[str, str | None]) -> list[Finding]:
    found = []
    if caches["compiled programs"] is None:
        text = "compiled programs are not kept between runs. Set JAX_COMPILATION_CACHE_DIR to a folder to start faster."
        found.append(Finding("note", text))
    for name, folder in caches.items():
        if folder is not None:
            found += folder_findings(name, Path(folder))
    return found


def folder_findings(name: str, folder: Path) -> list[Finding]:
    """A problem for a cache folder that cannot be written or is nearly full; the folder need not exist yet."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        return [Finding("problem", f"{folder} ({name}) cannot be written: {existing} is read-only or no folder.")]
    free = shutil.disk_usage(existing).free
    if free < LOW_DISK:
        text = f"{folder} ({name}) has {free / 2**30:.1f} GiB free; models and programs need more."
        return [Finding("problem", text)]
    return []


def _idle_accelerator() -> list[Finding]:
    """A problem where the machine has an accelerator that jax does not use."""
    if jax.default_backend() != "cpu":
        return []
    if forced := os.environ.get("JAX_PLATFORMS"):
        return [Finding("note", f"JAX_PLATFORMS={forced} decides the device; unset it to let jax look for others.")]
    if Path("/proc/driver/nvidia/version").exists():
        text = (
            "an NVIDIA driver is here and jax runs on the CPU. Install its plug-in: pip install 'elastic-jax[cuda13]'"
        )
        return [Finding("problem", text)]
    if any(Path("/dev").glob("accel[0-9]*")):
        text = "a TPU is here and jax runs on the CPU. Install its plug-in: pip install 'elastic-jax[tpu]'"
        return [Finding("problem", text)]
    return []

"""`elastic-jax doctor`: what is installed, what this machine can do, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_jax.cli.args import parse_verb
from elastic_jax.settings import settings_yaml

if TYPE_CHECKING:
    from elastic_jax.cli.examination import Report

UNHEALTHY = 1


@dataclass(frozen=True)
class DoctorSettings:
    """How to print the report."""

    json: bool = False
    """Print one JSON object instead of text."""


def main(argv: Sequence[str]) -> int:
    """Check versions, devices, kernels and cache folders; exit code 1 if something needs fixing."""
    asked = parse_verb(DoctorSettings, argv, verb="doctor", summary=str(main.__doc__))
    if asked.dry_run:
        print(settings_yaml(asked.settings), end="")
        return 0

    from elastic_jax.cli.examination import examine

    report = examine()
    print(json.dumps(report.as_dict()) if asked.settings.json else as_text(report))
    return 0 if report.healthy else UNHEALTHY


def as_text(report: Report) -> str:
    """The report as lines for a terminal or a bug report."""
    lines = ["system"]
    lines += [f"  {name}: {value}" for name, value in report.system.items()]
    lines.append("versions")
    lines += [f"  {name} {version}" for name, version in report.versions.items() if version is not None]
    absent = [name for name, version in report.versions.items() if version is None]
    lines.append(f"  not installed: {', '.join(absent) or 'none'}")
    lines.append("devices")
    for device in report.devices:
        memory = "" if device["memory_bytes"] is None else f", {device['memory_bytes'] / 2**30:.1f} GiB"
        lines.append(f"  {device['platform']} {device['id']}: {device['kind']}{memory}")
    lines.append(f"kernels (impl='auto' tries {', then '.join(report.order)})")
    lines += [f"  {b.name}: {'runs here' if b.runs else 'not here: ' + b.reason}" for b in report.backends]
    lines.append("cache folders")
    lines += [f"  {name}: {folder or 'none'}" for name, folder in report.caches.items()]
    lines += [f"{finding.level}: {finding.text}" for finding in report.findings]
    lines.append("Nothing needs fixing." if report.healthy else "Fix the problems above and run this again.")
    return "\n".join(lines)

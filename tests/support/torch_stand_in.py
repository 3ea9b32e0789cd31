"""A program that answers like `benchmarks/torch_attention.py` where no torch is installed."""

from __future__ import annotations

import stat
import sys
from pathlib import Path


def half_a_second(folder: Path) -> str:
    """Path of a "Python" that says 0.5 seconds for every job."""
    program = folder / "python"
    answer = "print('{\"seconds\": 0.5}', flush=True)"
    program.write_text(f"#!{sys.executable}\nfor _ in open(0): {answer}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)

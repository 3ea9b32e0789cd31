"""A program that answers like the scripts of `benchmarks/` that need torch, where there is none."""

from __future__ import annotations

from pathlib import Path


def half_a_second(folder: Path, first: str = '{"seconds": 0.5}', later: str = '{"seconds": 0.5}') -> str:
    """Path of a "Python" that gives one answer to its first job and another to all that follow."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\nread job && echo '{first}'\nwhile read job; do echo '{later}'; done\n")
    program.chmod(0o755)
    return str(program)

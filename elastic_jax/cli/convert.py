"""`elastic-jax convert`: any readable checkpoint in, one of the written formats out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic_jax.cli.args import parse_verb, required
from elastic_jax.cli.model import ModelSettings, load_model
from elastic_jax.errors import CheckpointError
from elastic_jax.files import check_output
from elastic_jax.settings import FilePath, settings_yaml


@dataclass(frozen=True)
class ConvertSettings(ModelSettings):
    """What to read, and what to write where."""

    dtype: Literal["bfloat16", "float32", "float16", "auto"] = "auto"
    """Number format of the written weights; `auto` keeps that of the source."""
    out: FilePath | None = None
    """Directory to write. It must be new or empty, unless --overwrite is given."""
    format: Literal["hf", "elastic", "router"] = "hf"
    """`hf`: the backbone, for transformers; `elastic`: backbone and routers as released; `router`: the routers only."""
    overwrite: bool = False
    """Replace a checkpoint that is in --out; other files there stay."""


def main(argv: Sequence[str]) -> int:
    """Convert a checkpoint or GGUF file to a Hugging Face, Elastic Attention or router directory."""
    asked = parse_verb(ConvertSettings, argv, verb="convert", summary=str(main.__doc__))
    settings = asked.settings
    out = Path(required(settings.out, "--out DIRECTORY", "directory to write"))
    if out.exists() and (out.is_file() or any(out.iterdir())) and not settings.overwrite:
        raise CheckpointError(f"{out} exists and is not empty. Choose another --out, or allow it with --overwrite.")
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from elastic_jax.weights import save_pretrained
    from elastic_jax.weights.save import check_replaceable

    if settings.overwrite:
        check_replaceable(out)
    check_output(out, folder=True)
    save_pretrained(load_model(settings), out, format=settings.format, overwrite=settings.overwrite)
    print(f"Wrote {settings.format} checkpoint to {out}")
    return 0

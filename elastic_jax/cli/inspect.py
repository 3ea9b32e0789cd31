"""`elastic-jax inspect`: which heads the routers, or calibrated heads, keep full for which prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic_jax.cli.args import parse_verb
from elastic_jax.cli.model import ModelSettings, encode, load_model, load_model_tokenizer, read_prompt
from elastic_jax.errors import ConfigError
from elastic_jax.settings import FilePath, settings_yaml


@dataclass(frozen=True)
class InspectSettings(ModelSettings):
    """Prompts to route, and where the results go."""

    prompt: tuple[str, ...] = ()
    """Texts of one or more prompts. One that looks like a flag is given as --prompt=TEXT."""
    prompt_file: tuple[FilePath, ...] = ()
    """UTF-8 files that hold one prompt each."""
    chat: bool = False
    """Wrap each prompt in the model's chat template."""
    routing: Literal["auto", "heads", "routers"] = "auto"
    """Whose choice is shown: that of the calibrated heads or of the routers; `auto`: of the heads where there are any.
    """
    router_bias: float = 0.0
    """Number added to logit_full - logit_sparse of every head: above 0 more heads run full, below 0 more run sparse."""
    png: FilePath | None = None
    """File for a heat map of all prompts."""
    json: bool = False
    """Print a JSON list with the choice of every head instead of the table."""

    def prompts(self) -> list[tuple[str, str]]:
        """Prompts with a label each: the file's name, or the beginning of the text."""
        labelled = [(_label(text), text) for text in self.prompt]
        labelled += [(Path(file).name, read_prompt(file)) for file in self.prompt_file]
        if not labelled:
            raise ConfigError("no prompt: give --prompt TEXT ... or --prompt-file FILE ...")
        return labelled


def main(argv: Sequence[str]) -> int:
    """Show which heads run full or sparse for each prompt: table, JSON, heat map."""
    asked = parse_verb(InspectSettings, argv, verb="inspect", summary=str(main.__doc__))
    settings, prompts = asked.settings, asked.settings.prompts()
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    if not settings.json:
        "".join(label for label, _ in prompts).encode(sys.stdout.encoding or "utf-8")  # rather fail before the work
    if settings.png is not None:
        from elastic_jax.plots import check_figure

        check_figure(settings.png)

    from elastic_jax.inspection import route_prompt, routing_table

    tokenizer = load_model_tokenizer(settings)
    encoded = [(label, encode(tokenizer, text, chat=settings.chat)) for label, text in prompts]
    model = load_model(settings)
    routing = None if settings.routing == "auto" else settings.routing
    routed = [route_prompt(model, label, ids, routing, router_bias=settings.router_bias) for label, ids in encoded]
    if settings.json:
        print(json.dumps([prompt.as_dict() for prompt in routed]))
    else:
        from rich.console import Console

        Console().print(routing_table(routed))
    if settings.png is not None:
        from elastic_jax.plots import routing_heatmap, save_figure

        save_figure(routing_heatmap(routed), settings.png)
    return 0


def _label(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:37] + "..."

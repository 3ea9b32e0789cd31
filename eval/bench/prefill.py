"""Prefill speed of a whole model, beside `transformers` on torch with the same weights."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elastic_jax.cli.model import ModelSettings, load_model, load_model_tokenizer
from elastic_jax.model import require_routers
from elastic_jax.weights import save_pretrained
from eval.bench.torch import torch_process
from eval.harness.timing import prefill_seconds
from eval.samples import HEADS
from eval.suites.haystack import Haystack, prose_texts

if TYPE_CHECKING:
    from rich.table import Table

    from eval.bench.settings import BenchPrefillSettings

TORCH = "transformers"


@dataclass(frozen=True)
class ModelSpeed:
    """Seconds from a prompt to the logits of its next token and a filled cache."""

    program: str
    """`transformers`, or `elastic-jax` with the routing that ran."""
    dtype: str
    tokens: int
    seconds: float


def measure_model(settings: BenchPrefillSettings) -> list[ModelSpeed]:
    """Times prefill of one prompt of real text at every length and dtype: all heads full, calibrated heads, routers.

    The last two are timed where the model has them, and one of them must be there.

    With `torch_python`, a Python that has torch and transformers, the same weights and prompts are timed there too.

    Raises:
        ConfigError: that Python cannot run the comparison; neither calibrated heads nor trained routers.
    """
    models = {
        dtype: ModelSettings(settings.model, settings.router, dtype, heads=settings.heads, msr=settings.msr)
        for dtype in settings.dtypes
    }
    haystack = Haystack(prose_texts(None, "evaluation"), load_model_tokenizer(models[settings.dtypes[0]]))
    rng = random.Random(0)
    prompts = [[token for piece in haystack.excerpt(rng, n) for token in piece.ids] for n in settings.lengths]
    results = []
    for dtype, named in models.items():
        model = load_model(named)
        routings = {"full": "full"}
        if model.heads is None:
            require_routers(model, "bench prefill")
        else:
            routings[HEADS] = "heads"
        if not model.fresh_routers:
            routings["elastic"] = "routers"
        for length, prompt in zip(settings.lengths, prompts, strict=True):
            times = prefill_seconds(model, [prompt], routings, tokens=length, repeats=settings.repeats)
            results += [ModelSpeed(f"elastic-jax, {name}", dtype, len(prompt), s) for name, s in times.items()]
    if settings.torch_python is not None:
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(load_model(ModelSettings(settings.model, settings.router, "float32")), f"{folder}/model")
            job = {
                "model": f"{folder}/model",
                "prompts": prompts,
                "dtypes": settings.dtypes,
                "repeats": settings.repeats,
            }
            with torch_process(settings.torch_python, "torch_prefill.py") as ask:
                results += [ModelSpeed(TORCH, **row) for row in ask(job)]
    return results


def model_table(speeds: Sequence[ModelSpeed]) -> Table:
    """A row per program, dtype and length; the last column says how many times faster than transformers it was."""
    from rich.table import Table

    torch_seconds = {(speed.dtype, speed.tokens): speed.seconds for speed in speeds if speed.program == TORCH}
    table = Table("program", "dtype", title="Prefill of the whole model")
    for column in ("tokens", "seconds", "tokens/s", f"{TORCH} / this"):
        table.add_column(column, justify="right")
    for speed in sorted(speeds, key=lambda speed: (speed.dtype, speed.tokens)):
        baseline = torch_seconds.get((speed.dtype, speed.tokens))
        ratio = f"{baseline / speed.seconds:.2f}" if baseline else "–"
        figures = (f"{speed.tokens:,}", f"{speed.seconds:.2f}", f"{speed.tokens / speed.seconds:,.0f}", ratio)
        table.add_row(speed.program, speed.dtype, *figures)
    return table

"""Prefill speed of a whole model, beside `transformers` on torch with the same weights."""

from __future__ import annotations

import json
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic_jax.cli.model import ModelSettings, load_model, load_model_tokenizer
from elastic_jax.errors import ConfigError
from elastic_jax.weights import save_pretrained
from eval.harness.timing import prefill_seconds
from eval.suites.haystack import Haystack, prose_texts

DType = Literal["float32", "bfloat16"]
TORCH = "transformers"
_TORCH_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "torch_prefill.py"


@dataclass(frozen=True)
class ModelSpeed:
    """Seconds from a prompt to the logits of its next token and a filled cache."""

    program: str
    """`transformers`, or `elastic-jax` with the routing that ran."""
    dtype: str
    tokens: int
    seconds: float


def measure_model(
    model: str,
    router: str | None,
    *,
    lengths: Sequence[int],
    dtypes: Sequence[DType],
    repeats: int,
    torch_python: str | None,
) -> list[ModelSpeed]:
    """Times all-full and routed prefill of one prompt of real text at every length and dtype.

    With `torch_python`, a Python that has torch and transformers, the same weights and prompts are timed there too.

    Raises:
        ConfigError: that Python cannot run the comparison.
    """
    settings = {dtype: ModelSettings(model, router, dtype) for dtype in dtypes}
    haystack = Haystack(prose_texts(None, "evaluation"), load_model_tokenizer(settings[dtypes[0]]))
    rng = random.Random(0)
    prompts = [[token for piece in haystack.excerpt(rng, length) for token in piece.ids] for length in lengths]
    results = []
    for dtype in dtypes:
        loaded = load_model(settings[dtype])
        for length, prompt in zip(lengths, prompts, strict=True):
            times = prefill_seconds(loaded, [prompt], tokens=length, views=("full", "elastic"), repeats=repeats)
            results += [ModelSpeed(f"elastic-jax, {view}", dtype, len(prompt), s) for view, s in times.items()]
    if torch_python is not None:
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(load_model(ModelSettings(model, router, "float32")), Path(folder) / "model")
            job = {"model": f"{folder}/model", "prompts": prompts, "dtypes": dtypes, "repeats": repeats}
            results += _run_torch(torch_python, job)
    return results


def _run_torch(python: str, job: Mapping[str, object]) -> list[ModelSpeed]:
    try:
        command = [python, str(_TORCH_SCRIPT)]
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        raise ConfigError(
            f"the comparison with torch failed under {python}: {detail}\n"
            "Give --torch-python a Python that has torch and transformers, or leave it out."
        ) from error
    return [ModelSpeed(TORCH, row["dtype"], row["tokens"], row["seconds"]) for row in json.loads(done.stdout)]

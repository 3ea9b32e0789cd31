"""Where figures come from: the command that repeats them, versions, commit, machine.

Short names for weights, so that results of different ones are never taken for each other's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import subprocess
import sys
import zlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from elastic_jax.model import ElasticForCausalLM, to_params
from elastic_jax.reward import ElasticRewardModel
from eval.samples import Prompt


def command_line(verb: str, settings: Any) -> str:
    """What repeats the run, with absolute paths by their last name: where they are is this machine's affair."""
    words = [f"elastic-jax {verb}"]
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value == field.default:
            continue
        name = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
            continue
        values = map(str, value if isinstance(value, tuple) else (value,))
        words += [f"--{name}", *(Path(v).name if Path(v).is_absolute() else v for v in values)]
    return " ".join(words)


def program() -> dict[str, str]:
    """What the figures were measured with."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "elastic_jax": metadata.version("elastic-jax"),
        "commit": commit or "not in a git checkout",
        "jax": metadata.version("jax"),
        "device": _device(),
    }


def _device() -> str:
    """What jax ran on; nothing where it was not needed, as with an endpoint."""
    jax = sys.modules.get("jax")
    return f"{jax.devices()[0].device_kind if jax else 'no device'} ({platform.machine()})"


def text_digest(*texts: str) -> str:
    """Of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)}:{text}".encode())
    return digest.hexdigest()[:16]


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """Of prompts token by token: another tokenizer, or another way to make prompts, shows in it."""
    digest = hashlib.sha256()
    for prompt in prompts:
        parts = (prompt.prompt_ids, prompt.continuation_ids, *prompt.option_ids)
        digest.update(f"{prompt.sample.uid} {[list(map(int, part)) for part in parts]}\n".encode())
    return digest.hexdigest()[:12]


_ROUTER = "layers.router."
_SAMPLED = 4096


def router_digest(model: ElasticForCausalLM) -> str:
    """Of every router weight, and of how the routers pool."""
    pooling = f"{model.config.router.pooling}/{model.config.router.pool_window}"
    return _digest({path: p for path, p in to_params(model).items() if path.startswith(_ROUTER)}, pooling)


def backbone_digest(model: ElasticForCausalLM) -> str:
    """Of the other weights, by `_SAMPLED` evenly spaced values of each: a large model is not read as a whole."""
    return _digest(_backbone(model), "")


def modes_digest(modes_LK: Iterable[Iterable[int]]) -> str:
    """Of head modes by layer and KV head."""
    modes = tuple(tuple(int(mode) for mode in row) for row in modes_LK)
    return f"{zlib.crc32(repr(modes).encode()):08x}"


def reward_digest(model: ElasticRewardModel) -> str:
    """Of a reward model's weights but its routers': those of the head, and of the backbone as in `backbone_digest`."""
    return _digest(_backbone(model.decoder) | {"score": model.score_head[...]}, "")


def _backbone(model: ElasticForCausalLM) -> dict[str, Any]:
    backbone = {path: p for path, p in to_params(model).items() if not path.startswith(_ROUTER)}
    return {path: p.reshape(-1)[:: max(1, p.size // _SAMPLED)] for path, p in backbone.items()}


def _digest(arrays: dict[str, Any], note: str) -> str:
    digest = hashlib.sha256(note.encode())
    for path, array in sorted(arrays.items()):
        digest.update(f"{path}{array.shape}{array.dtype}".encode())
        digest.update(np.asarray(array, np.float32).tobytes())
    return digest.hexdigest()[:12]

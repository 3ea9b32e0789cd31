"""Short names for weights and prompts, so that results of different ones are never taken for each other's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from elastic_jax.model import ElasticForCausalLM, to_params
from eval.samples import Prompt

_ROUTER = "layers.router."
_SAMPLED = 4096


def router_digest(model: ElasticForCausalLM) -> str:
    """Of every router weight, and of how the routers pool."""
    pooling = f"{model.config.router.pooling}/{model.config.router.pool_window}"
    return _digest({path: p for path, p in to_params(model).items() if path.startswith(_ROUTER)}, pooling)


def backbone_digest(model: ElasticForCausalLM) -> str:
    """Of the other weights, by `_SAMPLED` evenly spaced values of each: a large model is not read as a whole."""
    backbone = {path: p for path, p in to_params(model).items() if not path.startswith(_ROUTER)}
    return _digest({path: p.reshape(-1)[:: max(1, p.size // _SAMPLED)] for path, p in backbone.items()}, "")


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """Of prompts token by token: another tokenizer, or another way to make prompts, shows in it."""
    digest = hashlib.sha256()
    for prompt in prompts:
        parts = (prompt.prompt_ids, prompt.continuation_ids, *prompt.option_ids)
        digest.update(f"{prompt.sample.uid} {[list(map(int, part)) for part in parts]}\n".encode())
    return digest.hexdigest()[:12]


def _digest(arrays: dict[str, Any], note: str) -> str:
    digest = hashlib.sha256(note.encode())
    for path, array in sorted(arrays.items()):
        digest.update(f"{path}{array.shape}{array.dtype}".encode())
        digest.update(np.asarray(array, np.float32).tobytes())
    return digest.hexdigest()[:12]

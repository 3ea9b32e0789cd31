"""Short names for weights, so that results of different ones are never taken for each other's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from elastic_jax.model import ElasticForCausalLM, to_params
from elastic_jax.reward import ElasticRewardModel
from eval.samples import Sample

_ROUTER = "layers.router."
_SAMPLED = 4096


def router_digest(model: ElasticForCausalLM) -> str:
    """Of every router weight, and of how the routers pool."""
    pooling = f"{model.config.router.pooling}/{model.config.router.pool_window}"
    return _digest({path: p for path, p in to_params(model).items() if path.startswith(_ROUTER)}, pooling)


def backbone_digest(model: ElasticForCausalLM) -> str:
    """Of the other weights, by `_SAMPLED` evenly spaced values of each: a large model is not read as a whole."""
    return _digest(_backbone(model), "")


def reward_digest(model: ElasticRewardModel) -> str:
    """Of a reward model's weights but its routers': those of the head, and of the backbone as in `backbone_digest`."""
    return _digest(_backbone(model.decoder) | {"score": model.score_head[...]}, "")


def tokens_digest(samples: Iterable[Sample]) -> str:
    """Of samples given as token ids: another tokenizer, or another way to make prompts, shows in it."""
    digest = hashlib.sha256()
    for sample in samples:
        prompt, continuation = (list(sample.fields[name]) for name in ("prompt_ids", "continuation_ids"))
        digest.update(f"{sample.uid} {prompt} {continuation}\n".encode())
    return digest.hexdigest()[:12]


def _backbone(model: ElasticForCausalLM) -> dict[str, Any]:
    backbone = {path: p for path, p in to_params(model).items() if not path.startswith(_ROUTER)}
    return {path: p.reshape(-1)[:: max(1, p.size // _SAMPLED)] for path, p in backbone.items()}


def _digest(arrays: dict[str, Any], note: str) -> str:
    digest = hashlib.sha256(note.encode())
    for path, array in sorted(arrays.items()):
        digest.update(f"{path}{array.shape}{array.dtype}".encode())
        digest.update(np.asarray(array, np.float32).tobytes())
    return digest.hexdigest()[:12]

"""Finds the calibrated heads of a checkpoint, checks that they fit its weights, and says what is saved of them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax import smollm2
from elastic_jax.config import ModelConfig, Pattern
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.heads import Heads, load_heads
from elastic_jax.heads.record import HEADS_CONFIG
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.sharding.rules import replicated

_LOG = logging.getLogger(__name__)
_SHOWN = 12
"""Digits of a digest in a message."""


def find_heads(heads: Heads | str | Path | None, msr: float | None, checkpoint: Path) -> Heads | None:
    """The heads that a caller names, or those saved in a checkpoint's directory, cut at `msr` where that is given.

    Raises:
        CheckpointError: the named heads do not exist or cannot be read.
        ConfigError: an MSR without heads, or one outside of 0 to 1.
    """
    if heads is None and (checkpoint / HEADS_CONFIG).is_file():
        heads = checkpoint
    if heads is None:
        if msr is not None:
            raise ConfigError(f"msr={msr} was given without heads; want heads= as well (--heads).")
        return None
    if not isinstance(heads, Heads):
        heads = load_heads(smollm2.shipped_heads() if heads == smollm2.NAME else heads)
    return heads if msr is None else heads.at(msr)


def fitted_config(config: ModelConfig, heads: Heads, *, trained: bool, pattern: Pattern | None) -> ModelConfig:
    """The configuration with the sparse heads (pattern, sink and local blocks) that `heads` was calibrated for.

    A model with trained routers keeps its own, and a pattern that the caller asks for is kept too.

    Args:
        trained: whether the model has trained routers.
        pattern: the pattern that the caller asks for, if any.

    Raises:
        ConfigError: heads of another model, or of other sparse heads than these.
    """
    taken: dict[str, Any] = {} if trained else heads.geometry
    if pattern is not None:
        taken.pop("pattern", None)
    config = dataclasses.replace(config, router=dataclasses.replace(config.router, **taken))
    heads.check_fits(config)
    return config


def give_heads(model: ElasticForCausalLM, heads: Heads) -> None:
    """Makes a loaded model use these heads.

    Raises:
        CheckpointError: they were calibrated for other weights.
    """
    check_weights(heads, heads_fingerprint(model), model.source)
    model.use_heads(heads)


def check_weights(heads: Heads, own: str | None, source: str | None) -> None:
    """Raises `CheckpointError` for heads of other weights than those with fingerprint `own`, read from `source`.

    A fingerprint that is None is unknown; nothing is compared with it.
    """
    if None not in (own, heads.weights) and own != heads.weights:
        raise CheckpointError(
            f"these heads were calibrated for weights {str(heads.weights)[:_SHOWN]}..., and {source} has "
            f"{str(own)[:_SHOWN]}... Calibrate heads for this model (`train heads`), or accept them on purpose with "
            "heads=dataclasses.replace(load_heads(...), weights=None)."
        )


def heads_to_save(model: ElasticForCausalLM) -> Heads | None:
    """The heads that are saved with a model; None if it has none, or if its weights have changed since calibration."""
    heads, own = model.heads, heads_fingerprint(model)
    if heads is None or heads.weights in (None, own):
        return heads
    if own is None:
        return dataclasses.replace(heads, weights=None)
    _LOG.warning("the weights have changed since the heads of the model were calibrated, so the heads are not saved")
    return None


def heads_fingerprint(model: ElasticForCausalLM) -> str | None:
    """SHA-256 digest of the key projections of the first and the last layer, which tells models apart.

    It covers their shape and their values in bfloat16, so that a model has the same digest in float32 and in bfloat16.
    None for int8 and float16, whose values are rounded differently.
    """
    kernel = model.layers.attn.k_proj.kernel[...]
    if kernel.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    mesh = getattr(kernel.sharding, "mesh", None)
    ends = jax.jit(_ends, out_shardings=replicated(mesh) if isinstance(mesh, Mesh) else None)(kernel)
    return hashlib.sha256(str(kernel.shape).encode() + np.asarray(ends).tobytes()).hexdigest()


def _ends(kernel: jax.Array) -> jax.Array:
    return kernel[jnp.array([0, -1])].astype(jnp.bfloat16)

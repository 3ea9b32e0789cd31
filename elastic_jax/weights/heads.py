"""Whether calibrated heads belong to a model."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from elastic_jax.model import ElasticForCausalLM
from elastic_jax.sharding.rules import replicated


def heads_fingerprint(model: ElasticForCausalLM) -> str | None:
    """SHA-256 digest of the key projections of the first and the last layer: what tells one model from another.

    It is taken of their shape and of their values in bfloat16, so that a model has the same one in float32 and in
    bfloat16. None for int8 and float16, whose values are rounded in another way.
    """
    kernel = model.layers.attn.k_proj.kernel[...]
    if kernel.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    mesh = getattr(kernel.sharding, "mesh", None)
    ends = jax.jit(_ends, out_shardings=replicated(mesh) if isinstance(mesh, Mesh) else None)(kernel)
    return hashlib.sha256(str(kernel.shape).encode() + np.asarray(ends).tobytes()).hexdigest()


def _ends(kernel: jax.Array) -> jax.Array:
    return kernel[jnp.array([0, -1])].astype(jnp.bfloat16)

"""Tensors that official Elastic Attention checkpoints hold beside backbone and routers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from elastic_jax.config import ModelConfig

NUM_TASKS = 5
"""Task labels of the released recipe; one λ pair each."""


def is_extra(name: str) -> bool:
    """Training state that is kept and written back: λ, static mask logits, the optional task embedding."""
    return name.startswith("model.sparsity_lambda") or name.endswith(
        (".self_attn.attn_mask_log_alphas", ".mask_allocator.task_embedding.weight")
    )


def ignored_names(names: Iterable[str]) -> set[str]:
    """Tensors without effect: rotary buffers of old files, and the router temperature (inference is an argmax)."""
    return {name for name in names if name.endswith((".rotary_emb.inv_freq", ".mask_allocator.log_temp"))}


def default_extras(config: ModelConfig) -> dict[str, np.ndarray]:
    """What the official classes want to find for a model that was not trained by them (λ at zero)."""
    extras = {
        f"model.layers.{i}.self_attn.attn_mask_log_alphas": np.full(config.num_kv_heads, 4.0, np.float32)
        for i in range(config.num_layers)
    }
    extras |= {f"model.sparsity_lambda_{i}": np.zeros(1, np.float32) for i in (1, 2)}
    return extras | {f"model.sparsity_lambda{i}_task": np.zeros(NUM_TASKS, np.float32) for i in (1, 2)}


def log_temperatures(config: ModelConfig) -> dict[str, np.ndarray]:
    """The router temperature buffer of every layer: log 1."""
    return {
        f"model.layers.{i}.self_attn.mask_allocator.log_temp": np.zeros((), np.float32)
        for i in range(config.num_layers)
    }

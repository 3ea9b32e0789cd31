"""Checkpoints in and out: Hugging Face directories and hub ids, Elastic Attention checkpoints, GGUF, routers only."""

from elastic_jax.weights.load import from_pretrained, read_config
from elastic_jax.weights.save import save_pretrained

__all__ = ["from_pretrained", "read_config", "save_pretrained"]

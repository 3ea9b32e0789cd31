"""Configurations of models, routers and positions: frozen, validated, converted from and to Hugging Face."""

from elastic_jax.config.model import ModelConfig
from elastic_jax.config.rope import RopeConfig, RopeType
from elastic_jax.config.router import HeadMode, Pattern, RouterConfig

__all__ = ["HeadMode", "ModelConfig", "Pattern", "RopeConfig", "RopeType", "RouterConfig"]

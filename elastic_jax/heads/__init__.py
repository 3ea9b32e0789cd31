"""Calibrated heads: which KV heads of a model need full attention for every prompt; NumPy only."""

from elastic_jax.heads.duo_attention import save_duo_attention
from elastic_jax.heads.loading import load_heads
from elastic_jax.heads.record import CurvePoint, Heads

__all__ = ["CurvePoint", "Heads", "load_heads", "save_duo_attention"]

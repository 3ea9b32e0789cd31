"""Serving: many requests, of different lengths and routings, over one model and one cache."""

from elastic_jax.engine.config import EngineConfig as EngineConfig
from elastic_jax.engine.engine import Engine as Engine
from elastic_jax.engine.requests import Event as Event
from elastic_jax.engine.requests import Prefix as Prefix
from elastic_jax.engine.requests import Request as Request

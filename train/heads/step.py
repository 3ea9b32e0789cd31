"""One optimizer step of the gates: distance from full attention, a price for open gates, a push to 0 or 1.

Every KV head gives gate * full + (1 - gate) * sparse attention (DuoAttention, arXiv 2410.10819). The loss is the
distance between the model with all heads full and the gated one at the scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from elastic_jax.config import ModelConfig
from elastic_jax.model import ElasticForCausalLM, from_params
from elastic_jax.routing import Gates
from train.heads.samples import Batch
from train.heads.settings import GROUPS, HeadsTrainConfig
from train.loop.step import promoting

Frozen = dict[str, jax.Array]


class HeadsState(NamedTuple):
    """All that changes in a calibration; G groups of gates, one unless they are kept per task."""

    gates: jax.Array
    """float32 `[G, L, K]` from 0 (sparse) to 1 (full)."""
    opt_state: Any
    step: jax.Array
    price: jax.Array
    """Of an open gate, float32 `[G]`."""
    opened: jax.Array
    """Sum of the gates over the steps of a group, float32 `[G, L, K]`: late closers were missed longer."""


def first_state(model: ModelConfig, config: HeadsTrainConfig) -> HeadsState:
    """All gates at `optim.start`."""
    groups = len(GROUPS) if config.per_task else 1
    gates = jnp.full((groups, model.num_layers, model.num_kv_heads), config.optim.start, jnp.float32)
    price = jnp.full((groups,), config.optim.price, jnp.float32)
    opt_state = _optimizer(config).init(gates)
    return HeadsState(gates, opt_state, jnp.zeros((), jnp.int32), price, jnp.zeros_like(gates))


def make_step(
    model_config: ModelConfig, config: HeadsTrainConfig
) -> Callable[[HeadsState, Frozen, Batch], tuple[HeadsState, dict[str, jax.Array]]]:
    """Builds `step(state, frozen, batch) -> (state, metrics)`, jitted; the old state is consumed."""
    optimizer = _optimizer(config)
    heads = model_config.num_layers * model_config.num_kv_heads
    steps, settings = config.optim.steps, config.optim

    def step(state: HeadsState, frozen: Frozen, batch: Batch) -> tuple[HeadsState, dict[str, jax.Array]]:
        model = from_params(model_config, frozen)
        full_BPD = jax.lax.stop_gradient(scored_states(model, batch, "full"))
        group = batch.group
        done = state.step.astype(jnp.float32) / steps
        rise = jnp.clip(2.0 * done - 1.0, 0.0, 1.0)
        binary = settings.binary * rise

        def loss(z_LK: jax.Array) -> tuple[jax.Array, jax.Array]:
            gates = Gates(rows_of(z_LK, len(batch.lengths)), mixed=True)
            states_BPD = scored_states(model, batch, gates, remat=config.remat)
            kl = mean_kl(model, full_BPD, states_BPD, batch.weights)
            apart = kl if config.loss == "kl" else mean_distance(full_BPD, states_BPD, batch.weights)
            return apart + state.price[group] * z_LK.sum() + binary * (z_LK * (1.0 - z_LK)).sum(), kl

        z_LK = state.gates[group]
        gradient_LK, kl = jax.grad(loss, has_aux=True)(z_LK)
        gradient_GLK = jnp.zeros_like(state.gates).at[group].set(gradient_LK)
        updates, opt_state = optimizer.update(gradient_GLK, state.opt_state)
        moved_GLK: Any = optax.apply_updates(state.gates, updates)
        moved_LK = jnp.clip(moved_GLK[group], 0.0, 1.0)
        if state.gates.shape[0] > 1:  # gates of other tasks, and what Adam remembers of them, stay as they are
            mine = (jnp.arange(state.gates.shape[0]) == group)[:, None, None]
            opt_state = jax.tree.map(
                lambda new, old: jnp.where(mine, new, old) if new.ndim == 3 else new, opt_state, state.opt_state
            )
        price = state.price
        if config.target_msr is not None:
            surplus = jnp.maximum(moved_LK.mean(), 1.0 / heads) / (1.0 - config.target_msr)
            price = price.at[group].mul(surplus**settings.price_rate)
        metrics = {
            "loss": kl + state.price[group] * z_LK.sum(),
            "kl": kl,
            "grad_norm": jnp.linalg.norm(gradient_LK),
            "open": (z_LK > 0.5).sum(),
            "between": ((z_LK > 0.1) & (z_LK < 0.9)).sum(),
            "msr": 1.0 - z_LK.sum() / heads,
            "price": state.price[group],
            "tokens": batch.lengths.sum(),
        }
        new = HeadsState(
            state.gates.at[group].set(moved_LK),
            opt_state,
            state.step + 1,
            price,
            state.opened.at[group].add(moved_LK),
        )
        return new, metrics

    return jax.jit(step, donate_argnums=0)


def scored_states(model: ElasticForCausalLM, batch: Batch, gates: Any, *, remat: bool = False) -> jax.Array:
    """Normed hidden states at the scored places, `[B, SCORED, D]`."""
    out = model.hidden(batch.input_ids, lengths=batch.lengths, gates=gates, remat=remat)
    return jnp.take_along_axis(out.hidden_BTD, batch.positions[..., None], axis=1)


def rows_of(z_LK: jax.Array, rows: int) -> jax.Array:
    """The same gates for every row, `[L, B, K]`."""
    return jnp.broadcast_to(z_LK[:, None], (z_LK.shape[0], rows, z_LK.shape[1]))


def mean_kl(model: ElasticForCausalLM, full_BPD: jax.Array, states_BPD: jax.Array, weights_BP: jax.Array) -> jax.Array:
    """KL divergence from the next-token distributions of full attention, nats, mean over the scored tokens."""
    want, have = (jax.nn.log_softmax(model.head(x)) for x in (full_BPD, states_BPD))
    kl_BP = (jnp.exp(want) * (want - have)).sum(-1)
    return (kl_BP * weights_BP).sum() / weights_BP.sum()


def mean_distance(full_BPD: jax.Array, states_BPD: jax.Array, weights_BP: jax.Array) -> jax.Array:
    """Squared distance of the hidden states over the mean square of those of full attention."""
    full, states = full_BPD.astype(jnp.float32), states_BPD.astype(jnp.float32)
    apart_BP = ((states - full) ** 2).mean(-1) / jnp.maximum((full**2).mean(-1), 1e-6)
    return (apart_BP * weights_BP).sum() / weights_BP.sum()


def _optimizer(config: HeadsTrainConfig) -> optax.GradientTransformation:
    settings = config.optim
    rise, fall = max(settings.steps // 10, 1), max(settings.steps // 4, 1)
    peak = settings.learning_rate
    rate = optax.join_schedules(
        [
            optax.linear_schedule(peak / rise, peak, rise),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, peak / 20, fall),
        ],
        [rise, settings.steps - fall],
    )
    adam = optax.adam(promoting(rate), b1=0.9, b2=0.99)
    return optax.GradientTransformation(adam.init, promoting(adam.update))

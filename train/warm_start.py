"""Warm start of the routers: what each head is worth to each task, measured first, then learnt from stored keys.

In a pretrained model a handful of heads carry retrieval, and sampled gates name them only through a very noisy
gradient. Here every gate of a row is set to the same level between sparse and full, and one backward pass gives the
derivative of the loss in every gate; its mean over a few levels is the head's share of what full attention is worth
(integrated gradients along the path from sparse to full). Routers see nothing but pooled keys, so they can then be
fitted to stored ones, hundreds of steps in the time of one step through the backbone. End-to-end training goes on from
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from elastic_jax.config import ModelConfig
from elastic_jax.model import from_params
from elastic_jax.router import AttentionRouter, SoftGates
from train.config import RouterTrainConfig
from train.data.packing import Rows
from train.data.records import TASKS
from train.losses import logit_penalty, target_violation, token_nll
from train.optim import RouterParams

PREFIX = "layers.router."


class Measured(NamedTuple):
    """What was measured of X samples."""

    pooled_XLKH: Any
    slope_XLK: Any
    """Derivative of the sample's loss in each gate, mean over the levels; negative where full attention helps, NaN
    where only the keys were taken."""
    task_X: Any


class Probes(NamedTuple):
    """Jitted `(params, rows) -> (pooled keys [L, B, M, K, H], slopes [L, B, M, K])`; `keys` gives NaN for slopes."""

    worth: Callable[[dict[str, jax.Array], Rows], tuple[jax.Array, jax.Array]]
    keys: Callable[[dict[str, jax.Array], Rows], tuple[jax.Array, jax.Array]]


def make_probes(config: ModelConfig, *, levels: tuple[float, ...], max_segments: int) -> Probes:
    """Builds both. The keys are those of the last level."""

    def loss(z_LBMK: jax.Array, params: dict[str, jax.Array], rows: Rows) -> tuple[jax.Array, jax.Array]:
        model = from_params(config, params)
        out = model.hidden(
            rows.input_ids,
            segment_ids=rows.segment_ids,
            prompt_lengths=rows.prompt_lengths,
            num_segments=max_segments,
            gates=SoftGates(z_LBMK),
        )
        nll_BT = token_nll(out.hidden_BTD, model.head_kernel(), rows.labels, rows.weights > 0)
        return (rows.weights * nll_BT).sum(), out.pooled

    def gates(rows: Rows, level: jax.Array | float) -> jax.Array:
        return jnp.full((config.num_layers, *rows.task_ids.shape, config.num_kv_heads), level, jnp.float32)

    def worth(params: dict[str, jax.Array], rows: Rows) -> tuple[jax.Array, jax.Array]:
        def at_level(_: Any, level: jax.Array) -> tuple[jax.Array, jax.Array]:
            slope, pooled = jax.grad(loss, has_aux=True)(gates(rows, level), params, rows)
            return pooled, slope

        pooled, slopes = jax.lax.scan(at_level, jnp.zeros(_pooled_shape(config, rows)), jnp.array(levels))
        return pooled, slopes.mean(0)

    def keys(params: dict[str, jax.Array], rows: Rows) -> tuple[jax.Array, jax.Array]:
        z = gates(rows, levels[-1])
        return loss(z, params, rows)[1], jnp.full_like(z, jnp.nan)

    return Probes(jax.jit(worth), jax.jit(keys))


def _pooled_shape(config: ModelConfig, rows: Rows) -> tuple[int, ...]:
    return (config.num_layers, *rows.task_ids.shape, config.num_kv_heads, config.head_dim)


def by_sample(rows: Rows, pooled: jax.Array, slope: jax.Array) -> Measured:
    """The samples of packed rows, one after the other."""
    task = np.asarray(rows.task_ids).reshape(-1)
    pooled_XLKH, slope_XLK = (
        np.moveaxis(np.asarray(x, np.float32), 0, 2).reshape(len(task), x.shape[0], *x.shape[3:])
        for x in (pooled, slope)
    )
    present = task >= 0
    return Measured(pooled_XLKH[present], slope_XLK[present], task[present])


def fit(
    router: RouterParams,
    measured: Measured,
    model: ModelConfig,
    config: RouterTrainConfig,
    *,
    on_step: Callable[[int, float], None] = lambda done, loss: None,
) -> RouterParams:
    """Routers fitted to stored pooled keys; `on_step` hears how many steps are done and the loss of
    each.

    The loss of a sample is sum over heads of gate probability * mean slope of its task, plus the squared violation of
    the task's sparsity target and the logit penalty of end-to-end training. Means by task, because the slopes of one
    sample are mostly noise.
    """
    settings = config.warm_start
    logits = make_logits(model)
    worth_tLK = jnp.stack([_mean(measured.slope_XLK[measured.task_X == task]) for task in range(len(TASKS))])
    low, high = (jnp.array([task.target[end] for task in config.tasks.by_id]) for end in (0, 1))

    def loss(router: RouterParams, pooled_XLKH: jax.Array, task_X: jax.Array) -> jax.Array:
        logits_LXKc = logits(router, pooled_XLKH)
        full_LXK = jax.nn.softmax(logits_LXKc)[..., 1]
        value_X = jnp.einsum("lxk,xlk->x", full_LXK, worth_tLK[task_X])
        msr_X = 1.0 - full_LXK.mean((0, 2))
        violation_X = target_violation(msr_X, low[task_X], high[task_X])
        total = (value_X + 0.5 * config.sparsity.penalty * violation_X**2).mean()
        return total + config.gates.logit_penalty * logit_penalty(logits_LXKc[:, None], task_X[None])

    optimizer = optax.adamw(
        optax.cosine_decay_schedule(settings.learning_rate, settings.steps), weight_decay=config.optim.weight_decay
    )

    @jax.jit
    def step(router, opt_state, pooled_XLKH, task_X):
        value, gradient = jax.value_and_grad(loss)(router, pooled_XLKH, task_X)
        updates, opt_state = optimizer.update(gradient, opt_state, router)
        return optax.apply_updates(router, updates), opt_state, value

    rng = np.random.default_rng(config.run.seed)
    opt_state = optimizer.init(router)
    for index in range(settings.steps):
        pick = rng.choice(len(measured.task_X), min(settings.batch, len(measured.task_X)), replace=False)
        router, opt_state, value = step(router, opt_state, measured.pooled_XLKH[pick], measured.task_X[pick])
        on_step(index + 1, float(value))
    return router


def make_logits(config: ModelConfig) -> Callable[[RouterParams, jax.Array], jax.Array]:
    """Builds `logits(router, pooled [X, L, K, H]) -> [L, X, K, 2]`: the routers of all layers without the backbone."""
    abstract = nnx.eval_shape(lambda: AttentionRouter(config.head_dim, config.router, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)

    def layer(params: dict[str, jax.Array], pooled_XKH: jax.Array) -> jax.Array:
        flat = [(path, leaf.replace(params[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(state)]
        return nnx.merge(graph, nnx.from_flat_state(flat))(pooled_XKH)

    def logits(router: RouterParams, pooled_XLKH: jax.Array) -> jax.Array:
        params = {path.removeprefix(PREFIX): array for path, array in router.items()}
        return jax.vmap(layer, in_axes=(0, 1))(params, pooled_XLKH)

    return logits


def _mean(slopes_XLK: np.ndarray) -> jax.Array:
    """Mean over the measured samples; zeros without any."""
    known = slopes_XLK[np.isfinite(slopes_XLK).all((1, 2))]
    return jnp.array(known.sum(0) / max(len(known), 1))

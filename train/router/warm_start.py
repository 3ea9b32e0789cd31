"""Warm start of the routers: the worth of each head to each task is measured, then routers learn it from stored keys.

The worth of a head is how much the loss of the task's samples falls if the head has full instead of sparse attention.

In a pretrained model a handful of heads carry retrieval, and sampled gates name them only through a very noisy
gradient. Here all gates move together from full to sparse, and at a few places on the way one backward pass gives the
derivative of the loss in every gate; its mean is the head's share of what the whole way costs (integrated gradients).
A further round takes the way from full attention to the routing fitted so far, which charges the heads that it drops.
Routers see nothing but pooled keys, so they can be fitted to stored ones, hundreds of steps in the time of one step
through the backbone. End-to-end training goes on from there.
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
from elastic_jax.router import AttentionRouter
from elastic_jax.routing import Gates
from elastic_jax.weights.names import ROUTER_PREFIX
from train.config import RouterTrainConfig
from train.data.packing import Rows
from train.data.records import TASKS
from train.loop.step import promoting
from train.router.losses import logit_penalty, packed_nll, target_violation
from train.router.optim import RouterParams


class Measured(NamedTuple):
    """What was measured of X samples."""

    pooled_XLKH: Any
    slope_XLK: Any
    """Mean derivative of the sample's loss in each gate on the way times the gate's way, from the end to full;
    negative where full attention helps."""
    task_X: Any
    round_X: Any
    """Round of the measurement, -1 where only the keys were taken."""


Probe = Callable[[dict[str, jax.Array], jax.Array, Rows], tuple[jax.Array, jax.Array]]
"""(params, end of the way by task [tasks, L, K], rows) -> (pooled keys [L, B, M, K, H], slopes [L, B, M, K])."""


class Probes(NamedTuple):
    """Both jitted; the keys are those of the last level, and `keys` gives zeros for slopes."""

    worth: Probe
    keys: Probe


def make_probes(config: ModelConfig, *, levels: tuple[float, ...], max_segments: int) -> Probes:
    """Builds the probes for rows of at most `max_segments` samples."""

    def loss(z_LBMK: jax.Array, params: dict[str, jax.Array], rows: Rows) -> tuple[jax.Array, jax.Array]:
        model = from_params(config, params)
        out, nll_BT = packed_nll(model, rows, max_segments=max_segments, gates=Gates(z_LBMK, mixed=True))
        return (rows.weights * nll_BT).sum(), out.pooled

    def gates(end_tLK: jax.Array, rows: Rows, level: jax.Array | float) -> jax.Array:
        end_LBMK = jnp.moveaxis(end_tLK[jnp.maximum(rows.task_ids, 0)], 2, 0)
        return level + (1.0 - level) * end_LBMK

    def worth(params: dict[str, jax.Array], end_tLK: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
        def at_level(_: Any, level: jax.Array) -> tuple[jax.Array, jax.Array]:
            slope, pooled = jax.grad(loss, has_aux=True)(gates(end_tLK, rows, level), params, rows)
            return pooled, slope

        first = jnp.zeros((config.num_layers, *rows.task_ids.shape, config.num_kv_heads, config.head_dim))
        pooled, slopes = jax.lax.scan(at_level, first, jnp.array(levels))
        return pooled, slopes.mean(0) * (1.0 - gates(end_tLK, rows, 0.0))

    def keys(params: dict[str, jax.Array], end_tLK: jax.Array, rows: Rows) -> tuple[jax.Array, jax.Array]:
        z = gates(end_tLK, rows, levels[-1])
        return loss(z, params, rows)[1], jnp.zeros_like(z)

    return Probes(jax.jit(worth), jax.jit(keys))


def by_sample(rows: Rows, pooled: jax.Array, slope: jax.Array, *, round_index: int) -> Measured:
    """The samples of packed rows, one after the other."""
    task = np.asarray(rows.task_ids).reshape(-1)
    pooled_XLKH, slope_XLK = (
        np.moveaxis(np.asarray(x, np.float32), 0, 2).reshape(len(task), x.shape[0], *x.shape[3:])
        for x in (pooled, slope)
    )
    present = task >= 0
    return Measured(pooled_XLKH[present], slope_XLK[present], task[present], np.full(present.sum(), round_index))


def fit(
    router: RouterParams,
    measured: Measured,
    model: ModelConfig,
    config: RouterTrainConfig,
    *,
    on_step: Callable[[int, float], None] = lambda done, loss: None,
) -> RouterParams:
    """Routers fitted to stored pooled keys; `on_step` is called after each step with the
    number of steps done and the loss.

    The loss of a sample is the sum over heads of gate probability * worth of the head to the sample's task, plus the
    squared violation of the task's sparsity target and the logit penalty of end-to-end training. Worth is the mean
    slope by task, because the slopes of one sample are mostly noise, added up over the rounds.
    """
    logits = make_logits(model)
    worth_tLK = jnp.array(_by_task(lambda task: _worth(measured, task)))
    low, high = (jnp.array([task.target[end] for task in config.tasks.by_id]) for end in (0, 1))

    def loss(router: RouterParams, pooled_XLKH: jax.Array, task_X: jax.Array) -> jax.Array:
        logits_LXKc = logits(router, pooled_XLKH)
        full_LXK = jax.nn.softmax(logits_LXKc)[..., 1]
        value_X = jnp.einsum("lxk,xlk->x", full_LXK, worth_tLK[task_X])
        msr_X = 1.0 - full_LXK.mean((0, 2))
        violation_X = target_violation(msr_X, low[task_X], high[task_X])
        total = (value_X + 0.5 * config.sparsity.penalty * violation_X**2).mean()
        return total + config.gates.logit_penalty * logit_penalty(logits_LXKc[:, None], task_X[None])

    return _descended(loss, router, measured, config, on_step)


def fit_to_gates(
    router: RouterParams,
    measured: Measured,
    wanted_tLK: np.ndarray,
    model: ModelConfig,
    config: RouterTrainConfig,
    *,
    on_step: Callable[[int, float], None] = lambda done, loss: None,
) -> RouterParams:
    """Routers fitted to decide, from stored pooled keys, as `wanted_tLK` says for the task of the prompt (1.0 = full).

    The loss is the cross-entropy of the decisions plus the logit penalty of end-to-end training.
    """
    logits = make_logits(model)
    signs_tLK = 2.0 * jnp.asarray(wanted_tLK, jnp.float32) - 1.0

    def loss(router: RouterParams, pooled_XLKH: jax.Array, task_X: jax.Array) -> jax.Array:
        logits_LXKc = logits(router, pooled_XLKH)
        margin_XLK = jnp.moveaxis(logits_LXKc[..., 1] - logits_LXKc[..., 0], 0, 1)
        wrong = jax.nn.softplus(-margin_XLK * signs_tLK[task_X]).mean()
        return wrong + config.gates.logit_penalty * logit_penalty(logits_LXKc[:, None], task_X[None])

    return _descended(loss, router, measured, config, on_step)


def _descended(
    loss: Callable[[RouterParams, jax.Array, jax.Array], jax.Array],
    router: RouterParams,
    measured: Measured,
    config: RouterTrainConfig,
    on_step: Callable[[int, float], None],
) -> RouterParams:
    """Routers after `warm_start.steps` of AdamW on `loss(router, pooled, tasks)` of samples drawn at random."""
    settings = config.warm_start
    optimizer = optax.adamw(
        optax.cosine_decay_schedule(settings.learning_rate, settings.steps), weight_decay=config.optim.weight_decay
    )

    @jax.jit
    def step(router, opt_state, pooled_XLKH, task_X):
        value, gradient = jax.value_and_grad(loss)(router, pooled_XLKH, task_X)
        updates, opt_state = promoting(optimizer.update)(gradient, opt_state, router)
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
        params = {path.removeprefix(ROUTER_PREFIX): array for path, array in router.items()}
        return jax.vmap(layer, in_axes=(0, 1))(params, pooled_XLKH)

    return logits


def mean_gates(router: RouterParams, measured: Measured, model: ModelConfig) -> jax.Array:
    """Mean probability of full attention by task, `[tasks, L, K]`; 0 for a task without samples."""
    full_LXK = np.asarray(jax.nn.softmax(make_logits(model)(router, measured.pooled_XLKH))[..., 1])
    full_XLK = np.moveaxis(full_LXK, 0, 1)
    return jnp.array(_by_task(lambda task: _mean(full_XLK[measured.task_X == task])))


def _by_task(value: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.stack([value(task) for task in range(len(TASKS))])


def _worth(measured: Measured, task: int) -> np.ndarray:
    rounds = range(int(measured.round_X.max()) + 1)
    return sum(
        (_mean(measured.slope_XLK[(measured.task_X == task) & (measured.round_X == index)]) for index in rounds),
        np.zeros(measured.slope_XLK.shape[1:], np.float32),
    )


def _mean(values_XLK: np.ndarray) -> np.ndarray:
    """Mean over samples; zeros without any."""
    return values_XLK.sum(0) / max(len(values_XLK), 1)

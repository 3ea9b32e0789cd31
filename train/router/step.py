"""One optimizer step of router training: a pure function of state and batch, with the backbone frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from elastic_jax.config import ModelConfig
from elastic_jax.model import ElasticForCausalLM, from_params, to_params
from elastic_jax.router import SampledGates, fresh_router_params
from elastic_jax.weights.names import ROUTER_PREFIX
from train.config import GateConfig, RouterTrainConfig
from train.data.packing import Rows
from train.data.records import TASKS
from train.loop.step import accumulate, updated
from train.router.losses import (
    full_states,
    interval_sparsity_loss,
    logit_penalty,
    official_sparsity_loss,
    packed_nll,
    sparse_share,
    task_means,
)
from train.router.optim import RouterParams, Trainable, first_multipliers, make_optimizer, temperature
from train.token_losses import token_kl

Metrics = dict[str, jax.Array]


class RouterState(NamedTuple):
    """All that changes in training. Random draws follow from the seed and the step, so no generator state is kept."""

    trainable: Trainable
    opt_state: Any
    step: jax.Array


class Learnt(NamedTuple):
    """Losses of a micro-batch, scaled to the whole batch."""

    lm: jax.Array
    """Cross-entropy of the next tokens."""
    distil: jax.Array
    """KL divergence from full attention; 0 where it is not asked for."""
    total: jax.Array
    """What is minimised, by `loss.kind`."""


class Micro(NamedTuple):
    """What one micro-batch adds to the metrics; the last six are sums and counts by task id."""

    learnt: Learnt
    sparsity: jax.Array
    entropy: jax.Array
    samples: jax.Array
    msr: jax.Array
    msr_argmax: jax.Array
    learnt_tokens: jax.Array
    nll: jax.Array


def split_params(model: ElasticForCausalLM) -> tuple[RouterParams, dict[str, jax.Array]]:
    """(router, frozen backbone) arrays of a model by dotted path."""
    params = to_params(model)
    router = {path: array for path, array in params.items() if path.startswith(ROUTER_PREFIX)}
    return router, {path: array for path, array in params.items() if path not in router}


def fresh_routers(config: ModelConfig, gates: GateConfig, *, seed: int) -> RouterParams:
    """Untrained routers, drawn as `gates.first_weights` says, whose full logit starts at about `gates.initial_bias`."""
    params = fresh_router_params(config, seed=seed)
    if gates.first_weights == "scaled":
        params = {path: _rescaled(path, array, config.initializer_range) for path, array in params.items()}
    path = f"{ROUTER_PREFIX}head.fc3.bias"
    return params | {path: params[path].at[:, 1].add(gates.initial_bias)}


def _rescaled(path: str, array: jax.Array, std: float) -> jax.Array:
    """A kernel `[L, inputs, outputs]` at unit gain; zeros in the last layer. Biases stay as they are."""
    if not path.endswith(".kernel"):
        return array
    return jnp.zeros_like(array) if ".head.fc3." in path else array / (std * array.shape[1] ** 0.5)


def first_state(router: RouterParams, config: RouterTrainConfig) -> RouterState:
    """The state before the first step."""
    key = jax.random.fold_in(jax.random.key(config.run.seed), jnp.uint32(0xFFFFFFFF))
    trainable = Trainable(router, first_multipliers(config.sparsity, len(TASKS), key))
    optimizer = make_optimizer(config.optim, config.sparsity)
    return RouterState(trainable, optimizer.init(trainable), jnp.zeros((), jnp.int32))


def make_step(
    model_config: ModelConfig, config: RouterTrainConfig
) -> Callable[[RouterState, dict[str, jax.Array], Rows], tuple[RouterState, Metrics]]:
    """Builds `step(state, frozen, rows) -> (state, metrics)`, jitted; the old state is consumed.

    `rows` have leading axes [accumulate, rows]. The language-model loss is the weighted mean over the whole batch, the
    sparsity loss the mean over micro-batches. Gate noise is folded by step, micro-batch and layer.
    """
    optimizer = make_optimizer(config.optim, config.sparsity)
    sparsity_loss = _sparsity_loss(config)

    def micro_loss(
        trainable: Trainable, frozen: dict[str, jax.Array], rows: Rows, gates: SampledGates, scale: jax.Array
    ) -> tuple[jax.Array, Micro]:
        model = from_params(model_config, frozen | trainable.router)
        out, nll_BT = packed_nll(model, rows, max_segments=config.data.max_segments, gates=gates, remat=config.remat)
        lm = scale * (rows.weights * nll_BT).sum()
        distil = jnp.zeros(())
        if config.loss.kind != "task":
            full_BTD = full_states(model, rows, max_segments=config.data.max_segments)
            kl_BT = token_kl(out.hidden_BTD, full_BTD, model.head_kernel(), rows.weights > 0)
            distil = scale * (rows.weights * kl_BT).sum()
        total = config.loss.distil_weight * distil + (0.0 if config.loss.kind == "distil" else lm)
        msr_BM = sparse_share(out.z)
        sparsity = sparsity_loss(msr_BM, rows.task_ids, trainable.multipliers)
        loss = total + sparsity
        if config.gates.logit_penalty:
            loss += config.gates.logit_penalty * logit_penalty(out.logits, rows.task_ids)
        return loss, _micro_metrics(rows, Learnt(lm, distil, total), sparsity, out.logits, msr_BM, nll_BT)

    def step(state: RouterState, frozen: dict[str, jax.Array], rows: Rows) -> tuple[RouterState, Metrics]:
        rows = jax.tree.map(lambda field: jnp.repeat(field, config.gates.draws, axis=0), rows)
        count = rows.input_ids.shape[0]
        samples = (rows.task_ids >= 0).sum()
        learnt = (rows.weights > 0).sum()
        scale = count / jnp.maximum(samples if config.data.weighting == "samples" else learnt, 1)
        tau = temperature(config.gates, state.step, config.optim.steps)
        key = jax.random.fold_in(jax.random.key(config.run.seed), state.step)

        def contribution(numbered_rows: tuple[Rows, jax.Array]) -> tuple[Trainable, Micro]:
            micro_rows, index = numbered_rows
            gates = SampledGates(jax.random.fold_in(key, index), tau)
            return jax.grad(micro_loss, has_aux=True)(state.trainable, frozen, micro_rows, gates, scale)

        gradient, micro = accumulate(contribution, (rows, jnp.arange(count)))
        gradient = jax.tree.map(lambda leaf: leaf / count, gradient)
        metrics = _metrics(micro, count) | {
            "grad_norm": optax.tree.norm(gradient.router),
            "temperature": tau,
            "tokens": (rows.segment_ids > 0).sum(),
            **({} if config.loss.kind == "task" else {"distil_loss": micro.learnt.distil / count}),
            **{f"multiplier_{name}": value for name, value in state.trainable.multipliers.items()},
        }
        return updated(state, gradient, optimizer), metrics

    return jax.jit(step, donate_argnums=0)


def _sparsity_loss(config: RouterTrainConfig) -> Callable[..., jax.Array]:
    low, high = (jnp.array([task.target[end] for task in config.tasks.by_id]) for end in (0, 1))
    if config.sparsity.loss == "official":
        return lambda msr_BM, task_ids_BM, multipliers: official_sparsity_loss(msr_BM, task_ids_BM, low, multipliers)
    return lambda msr_BM, task_ids_BM, multipliers: interval_sparsity_loss(
        msr_BM, task_ids_BM, low, high, multipliers, penalty=config.sparsity.penalty
    )


def _micro_metrics(
    rows: Rows,
    learnt: Learnt,
    sparsity: jax.Array,
    logits_LBMKc: jax.Array,
    msr_BM: jax.Array,
    nll_BT: jax.Array,
) -> Micro:
    tasks = len(TASKS)
    log_share = jax.nn.log_softmax(logits_LBMKc)
    entropy_BM = -(jnp.exp(log_share) * log_share).sum(-1).mean((0, 3))
    argmax_BM = (logits_LBMKc[..., 1] <= logits_LBMKc[..., 0]).mean((0, 3))
    msr, samples = task_means(msr_BM, rows.task_ids, tasks)
    msr_argmax, _ = task_means(argmax_BM, rows.task_ids, tasks)
    task_BT = jnp.take_along_axis(rows.task_ids, jnp.maximum(rows.segment_ids - 1, 0), axis=1)
    member = (rows.weights > 0)[..., None] & jax.nn.one_hot(task_BT, tasks, dtype=bool)
    entropy = jnp.where(rows.task_ids >= 0, entropy_BM, 0.0).sum()
    return Micro(
        learnt=learnt,
        sparsity=sparsity,
        entropy=entropy,
        samples=samples,
        msr=msr * samples,
        msr_argmax=msr_argmax * samples,
        learnt_tokens=member.sum((0, 1)).astype(jnp.float32),
        nll=jnp.einsum("bt,btk->k", nll_BT, member.astype(jnp.float32)),
    )


def _metrics(micro: Micro, count: int) -> Metrics:
    """Means over the batch; per-task ones are NaN where the batch holds no such sample."""
    return {
        "loss": (micro.learnt.total + micro.sparsity) / count,
        "lm_loss": micro.learnt.lm / count,
        "sparsity_loss": micro.sparsity / count,
        "entropy": micro.entropy / micro.samples.sum(),
        "msr": micro.msr / micro.samples,
        "msr_argmax": micro.msr_argmax / micro.samples,
        "nll": micro.nll / micro.learnt_tokens,
    }

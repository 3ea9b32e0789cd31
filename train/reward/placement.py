"""Where the arrays of judge and reward-model training are on a mesh: what learns and the optimizer's averages divided
as the weights are, rows over data and fsdp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from elastic_jax.errors import ConfigError
from elastic_jax.sharding.rules import batch_sharding, param_shardings, replicated
from train.data.packing import Rows
from train.loop.distributed import check_rows, placed, rows_shardings
from train.reward.config import AdamConfig, PairSettings, RewardModelSettings
from train.reward.data.pairs import PairBatch
from train.reward.step import RewardState, first_state, make_optimizer


def check_mesh(config: RewardModelSettings, mesh: Mesh) -> None:
    """Refuses rows or a layout that the mesh cannot divide, with `ConfigError`."""
    check_rows(config.optim.rows, mesh)
    if isinstance(config, PairSettings) and config.layout == "shared" and mesh.shape["context"] > 1:
        raise ConfigError(
            f"mesh.context is {mesh.shape['context']}; the tokens of a prompt that its responses share cannot be "
            "divided. Set layout separate, or use mesh.fsdp and mesh.tensor."
        )


def placed_state(params: Mapping[str, Any], config: AdamConfig, mesh: Mesh) -> RewardState:
    """The state before the first step on a mesh; the optimizer's arrays are made in parts where they belong."""
    make = jax.jit(lambda params: first_state(params, config), out_shardings=state_shardings(params, config, mesh))
    return make(placed(dict(params), param_shardings(params, mesh)))


def state_shardings(params: Mapping[str, Any], config: AdamConfig, mesh: Mesh) -> Any:
    """Where the arrays of the state of these parameters (or their shapes) are, as a `RewardState` of shardings."""
    whole, divided = replicated(mesh), param_shardings(params, mesh)
    shapes = jax.eval_shape(lambda params: first_state(params, config), dict(params))
    averages = optax.tree_utils.tree_map_params(
        make_optimizer(config).init,
        lambda _, sharding: sharding,
        shapes.opt_state,
        divided,
        transform_non_params=lambda _: whole,
    )
    return RewardState(divided, averages, whole)  # pyrefly: ignore[bad-argument-type]


def batch_shardings(batch: Any, mesh: Mesh, *, leading: int) -> Any:
    """Where batches like this one go: rows, after so many leading axes, over data and fsdp; tokens of packed rows over
    context."""
    if isinstance(batch, Rows):
        return rows_shardings(mesh, leading=leading)
    return PairBatch(*(batch_sharding(mesh, leading=leading, tokens=False),) * len(PairBatch._fields))


def gathered(arrays: Mapping[str, jax.Array], mesh: Mesh | None) -> dict[str, Any]:
    """The whole arrays, in host memory where several processes hold parts of them; every process must ask."""
    if mesh is None or jax.process_count() == 1:
        return dict(arrays)
    join = jax.jit(lambda array: array, out_shardings=replicated(mesh))
    return {path: np.asarray(join(array)) for path, array in arrays.items()}

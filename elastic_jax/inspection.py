"""What the routers, or calibrated heads, decide for a set of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

from elastic_jax.config import HeadMode
from elastic_jax.errors import ShapeError
from elastic_jax.generation import bucket
from elastic_jax.layout import check_positions, pad_rows
from elastic_jax.model import ElasticForCausalLM, require_routers
from elastic_jax.program import model_program
from elastic_jax.routing import Gates, Routing

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class PromptRouting:
    """Routing of one prompt of `tokens` tokens."""

    label: str
    tokens: int
    full_LK: np.ndarray
    """True where the KV head keeps full attention."""
    probability_LK: np.ndarray
    """Probability of full attention that the router's two logits (and the bias) amount to; 1 or 0 for calibrated heads.
    """
    msr: float
    """Share of (layer, KV head) pairs that are sparse."""
    esr: float
    """Share of causal (query, key) pairs skipped, mean over layers."""
    esr_last_layer: float

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON; heads are `full` or `sparse`, one list per layer."""
        return {
            "label": self.label,
            "tokens": self.tokens,
            "msr": self.msr,
            "esr": self.esr,
            "esr_last_layer": self.esr_last_layer,
            "heads": np.where(self.full_LK, "full", "sparse").tolist(),
            "probability_full": np.round(self.probability_LK.astype(float), 4).tolist(),
        }


def route_prompt(
    model: ElasticForCausalLM,
    label: str,
    ids: Sequence[int],
    routing: Literal["heads", "routers"] | None = None,
    *,
    router_bias: float = 0.0,
) -> PromptRouting:
    """Runs the prompt through the model once and returns what its calibrated heads or its routers chose.

    `routing` says which of the two; by default the heads where the model has any.

    Raises:
        ConfigError: a model without them; routers must be trained.
        ShapeError: an empty prompt, or one longer than the model has positions.
    """
    model, gates = model.resolved(routing, 1)
    if gates is None:
        require_routers(model, "showing what the routers choose")
    if len(ids) == 0:
        raise ShapeError(f"prompt {label!r} is empty; want at least one token.")
    check_positions(model.config, len(ids), f"prompt {label!r} has {len(ids)} tokens", "Shorten it")
    padded, lengths = map(jnp.asarray, pad_rows([ids], bucket(len(ids))))
    routed, logits_LBKc = _route(model, padded, lengths, gates, jnp.float32(router_bias))
    full_LK, logits = np.asarray(routed.mode[:, 0]) == HeadMode.FULL, np.asarray(logits_LBKc[:, 0])
    probability_LK = np.asarray(jax.nn.sigmoid(logits[..., 1] - logits[..., 0] + router_bias))
    return PromptRouting(
        label=label,
        tokens=len(ids),
        full_LK=full_LK,
        probability_LK=probability_LK if gates is None else full_LK.astype(np.float32),
        **routed.measures(lengths, model.config, 0),
    )


@model_program
def _route(
    model: ElasticForCausalLM,
    ids_BT: jax.Array,
    lengths_B: jax.Array,
    gates: Gates | None,
    router_bias: jax.Array,
) -> tuple[Routing, jax.Array]:
    out = model.hidden(ids_BT, lengths=lengths_B, gates=gates, router_bias=router_bias)
    return out.routing, out.logits


def routing_table(prompts: Sequence[PromptRouting]) -> Table:
    """A row per prompt: tokens, full heads and the sparsity measures."""
    from rich.table import Table

    table = Table("prompt", caption="MSR: share of sparse heads. ESR: share of causal (query, key) pairs skipped.")
    for column in ("tokens", "full heads", "MSR", "ESR", "ESR, last layer"):
        table.add_column(column, justify="right")
    for prompt in prompts:
        full = f"{int(prompt.full_LK.sum())} of {prompt.full_LK.size}"
        sparsity = (f"{value:.2f}" for value in (prompt.msr, prompt.esr, prompt.esr_last_layer))
        table.add_row(prompt.label, f"{prompt.tokens:,}", full, *sparsity)
    return table

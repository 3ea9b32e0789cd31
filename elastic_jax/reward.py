"""Reward models: the decoder with a scalar head that reads the last token of a conversation."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from elastic_jax.config import ModelConfig, Pattern
from elastic_jax.config.families import FAMILIES
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.generation import bucket, end_ids, not_finite
from elastic_jax.heads import Heads
from elastic_jax.layout import Layout, check_call, check_prompts, squeeze_sequences
from elastic_jax.model import ElasticForCausalLM, RoutingChoice, from_params, param_shapes
from elastic_jax.program import model_program
from elastic_jax.routing import Gates, Imposed
from elastic_jax.weights.names import SCORE, SCORE_TENSOR

_LOG = logging.getLogger(__name__)

_LM_HEAD = frozenset({"lm_head.weight"})


class ElasticRewardModel(nnx.Module):
    """A decoder that gives a sequence one number (LongRM, arXiv 2510.06915).

    `decoder` has no vocabulary head; `score_head` is a vector `[D, 1]`. Routed attention works as in
    `ElasticForCausalLM`.
    """

    def __init__(self, decoder: ElasticForCausalLM, score_D1: jax.Array, config: ModelConfig):
        self.decoder = decoder
        self.score_head = nnx.Param(score_D1)
        self.config = config

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: Any = "bfloat16",
        mesh: Mesh | None = None,
        router: str | Path | None = None,
        heads: Heads | str | Path | None = None,
        msr: float | None = None,
        pattern: Pattern | None = None,
        new_head_seed: int | None = None,
    ) -> ElasticRewardModel:
        """Reads a Hugging Face sequence classifier of one label.

        Args:
            source, dtype, mesh, router, heads, msr, pattern: as for `elastic_jax.from_pretrained`.
            new_head_seed: start from a language model instead: its vocabulary head is left out and the score head
                drawn, N(0, 1 / (D + 1)) in standard deviation.

        Raises:
            CheckpointError: no score head where one is wanted, one that is already there where a new one is asked
                for, or one of more than one label.
            ConfigError: as for `elastic_jax.from_pretrained`, and a family that has no sequence classifier.
        """
        from elastic_jax.weights.heads import give_heads
        from elastic_jax.weights.load import load_params

        new_head = new_head_seed is not None

        def shapes(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
            if not FAMILIES[config.family].classifier:
                raise ConfigError(
                    f"{source} is of family {config.family}, of which transformers has no sequence classifier, so its "
                    "reward model could not be exported. Take a model of another family."
                )
            wanted = param_shapes(_headless(config))
            head = {SCORE: jax.ShapeDtypeStruct((config.hidden_size, 1), jnp.bfloat16)}
            return wanted if new_head else wanted | head

        try:
            loaded = load_params(
                source,
                shapes,
                ignore=_LM_HEAD,
                dtype=dtype,
                mesh=mesh,
                router=router,
                heads=heads,
                msr=msr,
                pattern=pattern,
            )
        except CheckpointError as error:
            raise CheckpointError(f"{error}{_hint(str(error))}") from error
        params, config = loaded.params, loaded.config
        if new_head:
            key, width = jax.random.key(new_head_seed), config.hidden_size
            drawn = jax.random.normal(key, (width, 1)) / (width + 1)
            params[SCORE] = drawn.astype(params["embed.embedding"].dtype)
        elif config.hf_extra.get("pad_token_id") in {*end_ids(config)} - {config.hf_extra.get("bos_token_id")}:
            _LOG.warning(
                "%s pads with an end of text, so transformers scores a conversation that ends with it at the token "
                "before. Here the last token is scored; what save_pretrained writes has another pad_token_id.",
                loaded.path,
            )
        score = params.pop(SCORE)
        model = cls(from_params(_headless(config), params, source=str(loaded.path)), score, config)
        model.decoder.extras, model.decoder.fresh_routers = loaded.extras, loaded.fresh_routers
        if loaded.heads is not None:
            give_heads(model.decoder, loaded.heads)
        return model

    def __call__(
        self,
        input_ids_BT: jax.Array,
        *,
        lengths: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        routing: RoutingChoice = None,
        router_bias: float | jax.Array = 0.0,
        num_segments: int | None = None,
        remat: bool = False,
    ) -> jax.Array:
        """Float32 score of each row `[B]`, or of each packed sequence `[B, M]` (0 where a row has fewer).

        The arguments are those of `ElasticForCausalLM`. What follows a sequence never changes its score.
        """
        out = self.decoder.hidden(
            check_call(self.config, input_ids_BT, lengths, segment_ids),
            lengths=lengths,
            segment_ids=segment_ids,
            gates=routing,
            router_bias=router_bias,
            num_segments=num_segments,
            remat=remat,
        )
        return squeeze_sequences(score_hidden(out.hidden_BTD, self.score_head[...], out.layout), out.layout)

    def score(
        self,
        input_ids: jax.Array,
        lengths: jax.Array | None = None,
        *,
        routing: Imposed | None = "full",
    ) -> jax.Array:
        """Float32 scores `[B]` of right-padded rows `[B, T]`; padding never changes a score.

        Args:
            input_ids: token ids of whole conversations.
            lengths: tokens of each row `[B]`; default T.
            routing: every head full by default, as in `transformers`: checkpoints of reward models have no routers, and
                fresh ones decide at random. "heads" or "routers" run what the model was given; None is as for
                `ElasticForCausalLM`.

        Raises:
            ShapeError: rows of another form, a row without tokens, or more tokens than the model has positions.
            NumericsError: a score that is NaN or infinite, with the layer where that begins.
        """
        ids, counts = check_prompts(self.config, input_ids, lengths)
        B, T = ids.shape
        decoder, gates = self.decoder.resolved(routing, B)
        model = ElasticRewardModel(decoder, self.score_head[...], self.config)
        padded = jnp.asarray(np.pad(ids, ((0, 0), (0, bucket(T) - T))))
        scores_B = _score(model, padded, jnp.asarray(counts), gates)
        finite_B = np.isfinite(np.asarray(scores_B))
        if not finite_B.all():
            row = int(np.argmin(finite_B))
            one = None if gates is None else dataclasses.replace(gates, z=gates.z[:, row : row + 1])
            raise not_finite(decoder, ids[row, : counts[row]].tolist(), one, f"row {row}: the score")
        return scores_B

    def without_source(self) -> ElasticRewardModel:
        """See `ElasticForCausalLM.without_source`."""
        return ElasticRewardModel(self.decoder.without_source(), self.score_head[...], self.config)

    def save_pretrained(self, directory: str | Path, *, overwrite: bool = False) -> None:
        """Writes a checkpoint that `transformers` opens as a sequence classifier; see `save_reward_model`."""
        from elastic_jax.weights.save import save_reward_model

        save_reward_model(self.decoder, self.score_head[...], self.config, directory, overwrite=overwrite)


def score_hidden(hidden_BTD: jax.Array, score_D1: jax.Array, layout: Layout) -> jax.Array:
    """Scores `[B, M]`, float32, from the last token of each sequence; 0 for sequences that are not there."""
    last_BM = jnp.where(
        layout.sequence_BT[:, None, :] == jnp.arange(layout.lengths_BM.shape[1])[None, :, None],
        jnp.arange(hidden_BTD.shape[1])[None, None],
        -1,
    ).max(-1)
    last_BMD = jnp.take_along_axis(hidden_BTD, jnp.maximum(last_BM, 0)[..., None], axis=1)
    scores_BM = jnp.dot(last_BMD, score_D1[:, 0], preferred_element_type=jnp.float32)
    return jnp.where(last_BM >= 0, scores_BM, 0.0)


@model_program
def _score(model: ElasticRewardModel, input_ids_BT: jax.Array, lengths_B: jax.Array, gates: Gates | None) -> jax.Array:
    return model(input_ids_BT, lengths=lengths_B, routing=gates)


def _headless(config: ModelConfig) -> ModelConfig:
    """The configuration of the same decoder without a vocabulary head of its own."""
    return dataclasses.replace(config, tie_word_embeddings=True)


def _hint(problem: str) -> str:
    if f"missing    {SCORE_TENSOR}" in problem:
        return "\nTo train a reward model from a language model, ask for a new head: new_head_seed=0."
    if f"unexpected {SCORE_TENSOR}" in problem:
        return "\nThe checkpoint has a score head: leave new_head_seed out to use it."
    if f"mis-shaped {SCORE_TENSOR}" in problem:
        return "\nOnly reward models of one label (num_labels = 1) are supported."
    return ""

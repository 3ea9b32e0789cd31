"""The decoder: one NNX model for all families of `elastic_jax.config.families`, with a router in every layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from elastic_jax.attention import DecoderLayer, LayerContext, attend_prompt
from elastic_jax.config import ModelConfig
from elastic_jax.errors import CheckpointError, ConfigError, ShapeError
from elastic_jax.heads import Heads
from elastic_jax.int8_linear import int8_maps, int8_shapes, join_int8
from elastic_jax.layers import Embedding, Linear, RMSNorm
from elastic_jax.layout import Layout, check_call, make_layout, squeeze_sequences
from elastic_jax.rope import rope_tables
from elastic_jax.router import SampledGates, pooling_weights
from elastic_jax.routing import Gates, Imposed, Routing, gates_from, same_for_rows, static_gates, to_modes
from elastic_jax.sharding.rules import divide_tokens


class Extras(dict[str, np.ndarray]):
    """Checkpoint tensors that are no parameters but are written back on export, such as the λ of Elastic Attention.

    Hashed and compared by content, so that a model that carries them stays a valid static argument of `jit`, and two
    models with equal ones share their programs.
    """

    def __hash__(self) -> int:  # pyrefly: ignore[bad-override]
        return hash(frozenset((name, x.shape, x.dtype, x.tobytes()) for name, x in self.items()))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Extras)
            and self.keys() == other.keys()
            and all(x.dtype == other[name].dtype and np.array_equal(x, other[name]) for name, x in self.items())
        )


LAYER_INPUT = "layer_input"
"""Name of the layer inputs that are kept for recomputation, for the policy that offloads them."""
_OFFLOAD = jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[LAYER_INPUT],
    offload_src="device",
    offload_dst="pinned_host",
)
RoutingChoice = Imposed | SampledGates | None
"""What decides the routing; None means the routers. See `ElasticForCausalLM.hidden`."""


class Output(NamedTuple):
    """Logits float32 `[B, T, V]` and the routing that produced them."""

    logits: jax.Array
    routing: Routing


class Hidden(NamedTuple):
    """Result of the decoder stack, before the vocabulary head.

    `z` (1.0 = full), the router `logits` and the `pooled` keys that they follow from are `[L, B, K]`,
    `[L, B, K, 2]` and `[L, B, K, H]`, with a sequence axis M after B for packed rows. `layers` `[L + 1, B, T, D]`
    holds the input of each layer and, last, the normed output. `kv` holds rotated keys and values, each
    `[L, B, T, K, H]`. `skipped` is that of `Routing`.
    """

    hidden_BTD: jax.Array
    logits: jax.Array
    z: jax.Array
    pooled: jax.Array
    layers: jax.Array | None
    kv: tuple[jax.Array, jax.Array] | None
    skipped: jax.Array | None
    layout: Layout

    @property
    def routing(self) -> Routing:
        return Routing(to_modes(self.z), self.logits, self.skipped)


class ElasticForCausalLM(nnx.Module):
    """Causal language model with routed attention (Elastic Attention, arXiv 2601.17367).

    The layers are one `DecoderLayer` whose arrays carry a leading axis L, run by `lax.scan`. Matrices have the
    model dtype; routers, norms' statistics, softmax and logits are float32.
    """

    def __init__(self, config: ModelConfig, *, dtype: Any = jnp.bfloat16, rngs: nnx.Rngs):
        if jax.config.jax_enable_x64:  # pyrefly: ignore[missing-attribute]
            raise ConfigError("JAX runs in 64-bit mode; models need 32-bit integers and floats. Unset JAX_ENABLE_X64.")
        dtype = jnp.dtype(dtype)
        std = config.initializer_range

        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> DecoderLayer:
            return DecoderLayer(config, dtype=dtype, rngs=rngs)

        self.embed = Embedding(
            config.vocab_size,
            config.hidden_size,
            multiplier=config.embedding_multiplier,
            std=std,
            dtype=dtype,
            rngs=rngs,
        )
        self.layers = stack(rngs)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.lm_head = (
            None
            if config.tie_word_embeddings
            else Linear((config.hidden_size,), (config.vocab_size,), std=std, dtype=dtype, rngs=rngs)
        )
        self.config = config
        self.source: str | None = None
        self.extras = Extras()
        self.fresh_routers = False
        """Whether the checkpoint had no routers. Fresh ones have learnt nothing: where they would decide, every head
        runs full. Set it to False to let them decide all the same."""
        self.heads: Heads | None = None
        """Calibrated heads, which decide unless the routers are asked for; see `use_heads`."""
        self.head_gates: nnx.Variable | None = nnx.data(None)

    def __call__(
        self,
        input_ids_BT: jax.Array,
        *,
        lengths: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        routing: Imposed | None = None,
        router_bias: float | jax.Array = 0.0,
    ) -> Output:
        """Logits of every token.

        Args:
            input_ids_BT: token ids `[B, T]`.
            lengths: tokens of each right-padded row `[B]`.
            segment_ids: `[B, T]`, 1, 2, ... for the sequences of a packed row, 0 for padding; every sequence starts
                on a block boundary.
            routing: "heads" runs the model's calibrated heads and "routers" lets its routers decide; None is the first
                where the model has heads, else the second (see `fresh_routers`). "full" or "sparse" force every head;
                a `Routing`, `Heads`, or modes `[L, B, K]` (`[L, B, M, K]` packed) are imposed.
            router_bias: added to full logit - sparse logit: positive for quality, negative for sparsity.

        Raises:
            ShapeError: arguments that do not fit `input_ids_BT`, or token ids that the vocabulary does not have.
            ConfigError: heads or routers are asked for and the model has none that were calibrated or trained.
        """
        input_ids_BT = check_call(self.config, input_ids_BT, lengths, segment_ids)
        out = self.hidden(
            input_ids_BT, lengths=lengths, segment_ids=segment_ids, gates=routing, router_bias=router_bias
        )
        return Output(self.head(out.hidden_BTD), out.routing)

    def hidden(
        self,
        input_ids_BT: jax.Array,
        *,
        lengths: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        prompt_lengths: jax.Array | None = None,
        gates: RoutingChoice = None,
        router_bias: float | jax.Array = 0.0,
        remat: bool | Literal["offload"] = False,
        num_segments: int | None = None,
        return_layers: bool = False,
        return_kv: bool = False,
    ) -> Hidden:
        """Runs the decoder stack without the vocabulary head; see `__call__` for the shared arguments.

        `prompt_lengths` `[B]` (`[B, M]` packed) bounds what the routers pool (default: every token). `gates`
        takes a routing as `__call__` does, `Gates`, or `SampledGates`, which make the result differentiable in the
        routers.
        `remat` recomputes each layer in the backward pass from its input, which "offload" keeps in the host's memory.
        `num_segments` bounds the sequences of a packed row.
        """
        if input_ids_BT.ndim != 2:
            raise ShapeError(f"input_ids has shape {input_ids_BT.shape}; want [batch, tokens]. Add a batch axis.")
        config = self.config
        B, T = input_ids_BT.shape
        layout = make_layout(
            (B, T),
            lengths=lengths,
            segment_ids=segment_ids,
            num_segments=num_segments,
            block_size=config.router.block_size,
        )
        prompt_BM = layout.lengths_BM
        if prompt_lengths is not None:
            prompt_BM = jnp.minimum(prompt_BM, jnp.asarray(prompt_lengths, jnp.int32).reshape(prompt_BM.shape))
        imposed = None
        if not isinstance(gates, SampledGates):
            rows = squeeze_sequences(layout.lengths_BM, layout).shape
            _, imposed = self.resolved(gates, *rows)
            if imposed is None and self.fresh_routers:
                imposed = gates_from("full", config, *rows)
        shape_LBMK = (config.num_layers, *layout.lengths_BM.shape, config.num_kv_heads)
        z_LBMK = None if imposed is None else imposed.z.reshape(shape_LBMK)
        context = LayerContext(
            layout,
            pooling_weights(layout, prompt_BM, config.router),
            rope_tables(config, layout.positions_BT, layout.seq_len_BT),
            jnp.asarray(router_bias, jnp.float32),
            sampled=gates if isinstance(gates, SampledGates) else None,
            mixed=imposed is not None and imposed.mixed,
        )
        x_BTD, (routed, inputs, kv) = _run_layers(
            *nnx.split(self.layers),
            divide_tokens(self.embed(input_ids_BT)),
            z_LBMK,
            context,
            remat=remat,
            return_layers=return_layers,
            return_kv=return_kv,
        )
        hidden_BTD = self.norm(x_BTD)
        layers = jnp.concatenate([inputs, hidden_BTD[None]]) if return_layers else None
        logits, z, pooled, skipped = routed
        return Hidden(hidden_BTD, logits, z, pooled, layers, kv, skipped, layout)

    def use_heads(self, heads: Heads | None) -> None:
        """Has calibrated heads decide from now on, or none of them.

        Compiled programs see the heads as data, so another cut of them compiles nothing anew.

        Raises:
            ConfigError: heads of another model, or of other sparse heads; their weights are not compared.
        """
        self.heads = heads
        self.head_gates = None
        if heads is not None:
            self.head_gates = nnx.Variable(static_gates(heads, self.config))

    def resolved(self, routing: Imposed | None, *rows: int) -> tuple[ElasticForCausalLM, Gates | None]:
        """The model to run and the gates to impose, None where its routers decide, for a routing as callers give it.

        `rows` are those of `gates_from`. The model is this one, or where routers are asked for the same without heads.

        Raises:
            ShapeError, ConfigError: as `__call__` says.
        """
        if routing is None and self.head_gates is not None:
            routing = "heads"
        if isinstance(routing, str) and routing == "heads":
            if self.head_gates is None:
                raise ConfigError(
                    f'routing "heads" needs calibrated heads; {self.source} has none. Load it with heads=DIRECTORY '
                    "(--heads), which `train heads` writes."
                )
            return self, same_for_rows(self.head_gates[...], *rows)
        if isinstance(routing, str) and routing == "routers":
            require_routers(self, 'routing "routers"')
            return self.without_heads(), None
        return self, gates_from(routing, self.config, *rows)

    def without_heads(self) -> ElasticForCausalLM:
        """The same arrays with routers that decide unless something is imposed."""
        bare = copy.copy(self)
        bare.use_heads(None)
        return bare

    def without_source(self) -> ElasticForCausalLM:
        """The same arrays without what does not matter to compiled programs: origin, extras, how heads were found."""
        bare = copy.copy(self)
        bare.source, bare.extras, bare.heads = None, Extras(), None
        return bare

    def head(self, hidden: jax.Array) -> jax.Array:
        """Vocabulary logits, float32 `[..., V]`, of normed hidden states `[..., D]`."""
        logits = jnp.tensordot(hidden, self._vocabulary_matrix(), axes=1, preferred_element_type=jnp.float32)
        return logits if self.config.logits_divisor == 1.0 else logits / self.config.logits_divisor

    def head_kernel(self) -> jax.Array:
        """The matrix `[D, V]` whose product with normed hidden states is the logits, tied or not."""
        kernel, divisor = self._vocabulary_matrix(), self.config.logits_divisor
        return kernel if divisor == 1.0 else kernel / divisor

    def _vocabulary_matrix(self) -> jax.Array:
        return self.embed.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]


@partial(jax.jit, static_argnames=("graph", "remat", "return_layers", "return_kv"))
def _run_layers(
    graph: nnx.GraphDef[DecoderLayer],
    stacked: nnx.State,
    x_BTD: jax.Array,
    z_LBMK: jax.Array | None,
    context: LayerContext,
    *,
    remat: bool | Literal["offload"],
    return_layers: bool,
    return_kv: bool,
) -> tuple[jax.Array, tuple]:
    """All layers after each other: the last output `[B, T, D]`, and routing, inputs, keys and values of every layer.

    One program for each set of shapes and options. Outside `jit`, a `lax.scan` would be traced, compiled and kept anew
    at every call, as its body is a new function then.
    """

    def step(x_BTD: jax.Array, xs: tuple) -> tuple[jax.Array, tuple]:
        state, layer_gates, index = xs
        if remat == "offload":
            x_BTD = checkpoint_name(x_BTD, LAYER_INPUT)
        layer = nnx.merge(graph, state)
        attend = partial(attend_prompt, layer.attn, layer.router, context, layer_gates, index)
        y_BTD, record = layer(divide_tokens(x_BTD), attend)
        kv = (record.k_BTKH, record.v_BTKH) if return_kv else None
        routed = (record.logits, record.gates, record.pooled, record.skipped)
        routed = jax.tree.map(lambda x: squeeze_sequences(x, context.layout), routed)
        return y_BTD, (routed, x_BTD if return_layers else None, kv)

    body = jax.checkpoint(step, policy=_OFFLOAD if remat == "offload" else None) if remat else step
    layers = jax.tree.leaves(stacked)[0].shape[0]
    return jax.lax.scan(body, x_BTD, (stacked, z_LBMK, jnp.arange(layers)))


def require_routers(model: ElasticForCausalLM, what: str) -> None:
    """Raises `ConfigError` where `what` is about the routers' decisions and the model has none that were trained."""
    if model.fresh_routers:
        raise ConfigError(
            f"{what} needs trained routers; {model.source} has none, and fresh ones have learnt nothing. Give a router "
            "directory (--router), run full or sparse attention instead, or ask for fresh ones (--fresh-routers; in "
            "Python model.fresh_routers = False)."
        )


def param_shapes(config: ModelConfig, dtype: Any = jnp.bfloat16) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of every parameter by dotted path, without allocating any."""
    return {path: jax.ShapeDtypeStruct(p.shape, p.dtype) for path, p in to_params(_abstract(config, dtype)).items()}


def to_params(model: nnx.Module) -> dict[str, Any]:
    """The arrays of a model by dotted path, such as `layers.attn.q_proj.kernel`."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def from_params(config: ModelConfig, params: Mapping[str, Any], *, source: str | None = None) -> ElasticForCausalLM:
    """Builds a model around existing arrays; its dtype is that of the embedding table.

    int8 kernels of layers come with a scale each, see `elastic_jax.int8_linear`.

    Raises:
        CheckpointError: paths missing, unknown or of another shape, all listed.
    """
    wanted = param_shapes(config, params["embed.embedding"].dtype if "embed.embedding" in params else jnp.bfloat16)
    maps = int8_maps(params)
    wanted = int8_shapes(wanted, maps)
    problems = [f"missing {path} {spec.shape}" for path, spec in wanted.items() if path not in params]
    problems += [f"unexpected {path} {np.shape(array)}" for path, array in params.items() if path not in wanted]
    problems += [
        f"{path}: got {np.shape(params[path])}, want {spec.shape}"
        for path, spec in wanted.items()
        if path in params and np.shape(params[path]) != spec.shape
    ]
    if problems:
        raise CheckpointError("parameters do not fit the configuration:\n  " + "\n  ".join(problems))
    model = _abstract(config, wanted["embed.embedding"].dtype)
    for name in maps:
        join_int8(model, name, *(wanted[f"layers.{name}.{leaf}"] for leaf in ("kernel", "scale")))
    state = nnx.state(model, nnx.Param)
    filled = [
        (path, leaf.replace(jnp.asarray(params[name], wanted[name].dtype)))
        for path, leaf in nnx.to_flat_state(state)
        for name in [".".join(map(str, path))]
    ]
    nnx.update(model, nnx.from_flat_state(filled))
    model.source = source
    return model


def _abstract(config: ModelConfig, dtype: Any) -> ElasticForCausalLM:
    return nnx.eval_shape(lambda: ElasticForCausalLM(config, dtype=dtype, rngs=nnx.Rngs(0)))

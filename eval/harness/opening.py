"""What the settings of a benchmark name: the arms to compare, and the backend that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from elastic_jax.cli.model import load_model
from elastic_jax.errors import ConfigError
from eval.harness.settings import BenchmarkSettings
from eval.samples import ALL_SPARSE, ELASTIC, ENDPOINT_ARM, FULL, HEADS, Arm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from elastic_jax.heads import Heads
    from elastic_jax.model import ElasticForCausalLM
    from eval.harness.backends.base import Backend


def arms_of(settings: BenchmarkSettings) -> list[Arm]:
    """What is compared, the reference first. Names of arms are part of journal keys: another name is another result.

    Raises:
        ConfigError: values so close that their results would share a name; calibrated heads asked for and none named.
        CheckpointError: calibrated heads that cannot be read.
        DataError: a ranking of the heads that cannot be read.
    """
    if settings.endpoint is not None:
        return [ENDPOINT_ARM]
    fixed = {"full": Arm(FULL, "full"), "sparse": Arm(ALL_SPARSE, "sparse")}
    arms = [fixed[view] for view in settings.views if view in fixed]
    if "elastic" in settings.views:
        arms += [
            Arm(_cached(f"{ELASTIC}, bias {bias:+g}" if bias else ELASTIC, bits), "elastic", bias, bits)
            for bits in (16, *settings.cache_bits)
            for bias in settings.router_bias
        ]
    if settings.compares_heads:
        heads = _heads(settings)
        modes_LK = heads.modes()
        name, modes = f"{HEADS}, MSR {modes_LK.mean():.2f}", tuple(map(tuple, modes_LK.tolist()))
        arms += [
            Arm(_cached(name, bits), "elastic", cache_bits=bits, modes_LK=modes) for bits in (16, *settings.cache_bits)
        ]
    if settings.forced_msr:
        from eval.harness.routing import forced_modes, read_head_scores

        scores_LK = read_head_scores(str(settings.head_scores))
        arms += [
            Arm(f"forced MSR {share:g}", "elastic", modes_LK=forced_modes(scores_LK, share))
            for share in settings.forced_msr
        ]
    names = [arm.name for arm in arms]
    if len(set(names)) < len(names):
        double = next(name for place, name in enumerate(names) if name in names[:place])
        raise ConfigError(f"two runs would be named {double!r}; want values that differ in their first six digits.")
    return arms


def _cached(name: str, cache_bits: int) -> str:
    return name if cache_bits == 16 else f"{name} + {cache_bits}-bit cache"


def _heads(settings: BenchmarkSettings) -> Heads:
    from elastic_jax.weights.heads import find_heads

    heads = find_heads(settings.heads, settings.msr, Path(settings.resolved()[0]).expanduser())
    if heads is None:
        raise ConfigError("--views heads wants calibrated heads: give --heads, or a model that was saved with them.")
    return heads


def open_backend(settings: BenchmarkSettings, tokenizer: PreTrainedTokenizerBase) -> Backend:
    """The model, loaded, or the endpoint.

    Raises:
        ConfigError: an endpoint without a model name, or with an address that is none; the elastic view of a model
            without trained routers; calibrated heads of another model, or of other sparse heads.
    """
    if settings.endpoint is not None:
        from eval.harness.backends.endpoint import EndpointBackend, EndpointConfig

        return EndpointBackend(
            EndpointConfig(
                settings.endpoint,
                settings.endpoint_model,
                chat=settings.chat,
                concurrency=settings.concurrency,
                timeout_s=settings.timeout_s,
                retries=settings.retries,
                max_tokens=settings.endpoint_tokens,
            )
        )
    from eval.harness.backends.local import ModelBackend

    return ModelBackend(compared_model(load_model(settings), settings), tokenizer)


def compared_model(model: ElasticForCausalLM, settings: BenchmarkSettings) -> ElasticForCausalLM:
    """The model of all arms: its routers decide where nothing is imposed, and sparse heads see what is asked for.

    Raises:
        ConfigError: see `open_backend`.
    """
    from elastic_jax.model import require_routers
    from eval.harness.backends.local import with_router_settings

    if "elastic" in settings.views:
        require_routers(model, "--views elastic")
    changed = with_router_settings(
        model.without_heads(),
        pattern=settings.pattern,
        sink_blocks=settings.sink_blocks,
        local_blocks=settings.local_blocks,
    )
    if settings.compares_heads and model.heads is not None:
        model.heads.check_fits(changed.config)
    return changed

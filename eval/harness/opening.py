"""What the settings of a benchmark name: the arms to compare, and the backend that answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elastic_jax.cli.model import load_model
from elastic_jax.errors import ConfigError
from eval.harness.settings import BenchmarkSettings
from eval.samples import ALL_SPARSE, ELASTIC, ENDPOINT_ARM, FULL, Arm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from eval.harness.backends.base import Backend


def arms_of(settings: BenchmarkSettings) -> list[Arm]:
    """What is compared, the reference first. Names of arms are part of journal keys: another name is another result.

    Raises:
        ConfigError: values so close that their results would share a name.
        DataError: a ranking of the heads that cannot be read.
    """
    if settings.endpoint is not None:
        return [ENDPOINT_ARM]
    fixed = {"full": Arm(FULL, "full"), "sparse": Arm(ALL_SPARSE, "sparse")}
    arms = [fixed[view] for view in settings.views if view != "elastic"]
    if "elastic" in settings.views:
        arms += [
            Arm(_elastic_name(bias, bits), "elastic", router_bias=bias, cache_bits=bits)
            for bits in (16, *settings.cache_bits)
            for bias in settings.router_bias
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


def _elastic_name(router_bias: float, cache_bits: int) -> str:
    name = f"{ELASTIC}, bias {router_bias:+g}" if router_bias else ELASTIC
    return name if cache_bits == 16 else f"{name} + {cache_bits}-bit cache"


def open_backend(settings: BenchmarkSettings, tokenizer: PreTrainedTokenizerBase) -> Backend:
    """The model, loaded, or the endpoint.

    Raises:
        ConfigError: an endpoint without a model name, or with an address that is none; the elastic view of a model
            without trained routers.
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
    from elastic_jax.model import require_routers
    from eval.harness.backends.local import ModelBackend, with_router_settings

    model = load_model(settings)
    if "elastic" in settings.views:
        require_routers(model, "--views elastic")
    model = with_router_settings(
        model,
        pattern=settings.pattern,
        sink_blocks=settings.sink_blocks,
        local_blocks=settings.local_blocks,
    )
    return ModelBackend(model, tokenizer)

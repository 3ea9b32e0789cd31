"""What it saves to compute a prompt once for all its responses: `python benchmarks/shared_prefix.py`.

Loss and gradient of one SimPO pair on random weights of SmolLM2's shape, all weights learning, full attention, every
layer recomputed in the backward pass: in the shared layout and with a row for each response. Programs take turns; the
fastest of each counts.

Work is counted in two parts. Matrix products of the layers: the XLA compiler's count for one layer, without the
attention loops, which it cannot count, and without the vocabulary head, which is the same in both. Attention: pairs of
a token and an earlier one, or itself, that a full head computes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.model import param_shapes
from elastic_jax.shared_prefix import separate_rows_hidden, shared_prefix_hidden
from eval.timing import fastest, seconds
from train.reward.config import LoraConfig, PairDataConfig, SimpoTrainConfig
from train.reward.data.pairs import PairBatch
from train.reward.objectives import simpo_objective
from train.reward.weights import Assembly

SMOLLM2 = ModelConfig(
    family="llama",
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    router=RouterConfig(),
)
RUNS = {"shared": shared_prefix_hidden, "separate": separate_rows_hidden}


def random_params(config: ModelConfig) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(what learns, float32; routers), N(0, 0.02)."""
    rng = np.random.default_rng(0)
    drawn = {
        path: jnp.asarray(0.02 * rng.standard_normal(spec.shape, np.float32))
        for path, spec in param_shapes(config).items()
    }
    routers = {path: x for path, x in drawn.items() if path.startswith("layers.router.")}
    return {path: x for path, x in drawn.items() if path not in routers}, routers


def one_pair(prompt: int, response: int, rejects: int) -> PairBatch:
    ids = (
        np.random.default_rng(1)
        .integers(0, SMOLLM2.vocab_size, (1, prompt + (1 + rejects) * response))
        .astype(np.int32)
    )
    lengths = np.full((1, 1 + rejects), response, np.int32)
    responses = ids[:, prompt:].reshape(1, 1 + rejects, response)
    return PairBatch(ids[:, :prompt], np.full(1, prompt, np.int32), responses, lengths, np.zeros(1, np.float32))


def layer_flops(layout: str, batch: PairBatch) -> float:
    """The compiler's count of loss and gradient through one layer."""
    config = dataclasses.replace(SMOLLM2, num_layers=1)
    params, routers = random_params(config)
    assembly = Assembly(config, jnp.bfloat16, LoraConfig())

    def loss(params: Any) -> jax.Array:
        out = RUNS[layout](assembly.decoder(params, routers), *map(jnp.asarray, batch[:4]), routing="full")
        return out.hidden.astype(jnp.float32).sum()

    counted = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()
    assert counted is not None
    return counted["flops"]


def pairs(layout: str, prompt: int, response: int, rejects: int, block: int) -> int:
    """Pairs of tokens of a full head; a shared row begins with the prompt's last block, padded to whole blocks."""
    if layout == "separate":
        length = prompt + response
        return (1 + rejects) * length * (length + 1) // 2
    first = (prompt - 1) // block * block
    tokens = prompt - first + response
    return prompt * (prompt + 1) // 2 + (1 + rejects) * (first * tokens + tokens * (tokens + 1) // 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prompt")
    parser.add_argument("--response", type=int, default=128, help="tokens of each response")
    parser.add_argument("--rejects", type=int, default=2, help="rejected responses")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each layout")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    sizes = (asked.prompt, asked.response, asked.rejects)
    batch = one_pair(*sizes)
    params, routers = random_params(SMOLLM2)

    def program(layout: Any) -> Any:
        data = PairDataConfig(prompt_tokens=asked.prompt, response_tokens=asked.response, rejects=asked.rejects)
        config = SimpoTrainConfig(layout=layout, data=data)
        objective = simpo_objective(Assembly(SMOLLM2, jnp.bfloat16, config.lora), config)
        step = jax.jit(jax.value_and_grad(lambda params: objective.sums(params, routers, batch)["loss"]))
        return lambda: seconds(step, params)

    times = fastest({layout: program(layout) for layout in RUNS}, asked.rounds)
    flops = {layout: layer_flops(layout, batch) for layout in RUNS}
    work = {layout: pairs(layout, *sizes, SMOLLM2.router.block_size) for layout in RUNS}
    figures = {
        "sizes": dict(zip(("prompt", "response", "rejects"), sizes, strict=True)),
        "device": jax.devices()[0].device_kind,
        "seconds": times,
        "layer_flops": flops,
        "attention_pairs": work,
        "shared/separate": {
            name: round(of["shared"] / of["separate"], 3)
            for name, of in (("seconds", times), ("layer_flops", flops), ("attention_pairs", work))
        },
    }
    print(json.dumps(figures, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

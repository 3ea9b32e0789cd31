"""What it saves to compute a prompt once for all its responses: `python benchmarks/shared_prefix.py`.

Gradient in all weights of the decoder of SmolLM2's shape, random weights, bfloat16, full attention, every layer
recomputed in the backward pass, without the vocabulary head, whose work is the same: in the shared layout and with a
row for each response. Programs take turns; the fastest call of each counts.

Work is counted in two parts. Linear maps: the XLA compiler's count for one layer, forward and backward, in which it
takes each attention loop for a single turn. Attention: pairs of a token and an earlier one, or itself, of a full head.
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
from elastic_jax.model import from_params, param_shapes
from elastic_jax.shared_prefix import separate_rows_hidden, shared_prefix_hidden
from eval.harness.timing import fastest, seconds

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


def random_params(config: ModelConfig) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        path: jnp.asarray(0.02 * rng.standard_normal(spec.shape, np.float32), spec.dtype)
        for path, spec in param_shapes(config).items()
    }


def one_record(prompt: int, response: int, rejects: int) -> tuple[jax.Array, ...]:
    """Prompt, its length, responses, their lengths."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, SMOLLM2.vocab_size, (1, prompt)), rng.integers(0, 9999, (1, 1 + rejects, response))
    lengths = np.full(1, prompt), np.full((1, 1 + rejects), response)
    batch = (ids[0], lengths[0], ids[1], lengths[1])
    return tuple(jnp.asarray(part, jnp.int32) for part in batch)


def pairs(layout: str, prompt: int, response: int, rejects: int, block: int) -> int:
    """Pairs of tokens of a full head; in the shared layout a response's row begins with the prompt's last block."""
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
    parser.add_argument("--layers", type=int, default=SMOLLM2.num_layers, help="layers of the decoder")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each layout")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    asked = parser.parse_args()
    sizes = (asked.prompt, asked.response, asked.rejects)
    config = dataclasses.replace(SMOLLM2, num_layers=asked.layers)
    params, batch = random_params(config), one_record(*sizes)

    def program(run: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            out = run(from_params(config, params), *batch, routing="full", remat=True)
            return out.hidden.astype(jnp.float32).sum()

        return jax.jit(jax.grad(loss)).lower(params).compile()

    programs = {layout: program(run) for layout, run in RUNS.items()}
    flops = {layout: compiled.cost_analysis()["flops"] for layout, compiled in programs.items()}
    work = {layout: pairs(layout, *sizes, config.router.block_size) for layout in RUNS}
    calls = {layout: lambda compiled=compiled: seconds(compiled, params) for layout, compiled in programs.items()}
    times = fastest(calls, asked.rounds)
    counted = {"seconds": times, "layer_flops": flops, "attention_pairs": work}
    ratios = {name: round(of["shared"] / of["separate"], 3) for name, of in counted.items()}
    shape = {"prompt": asked.prompt, "response": asked.response, "rejects": asked.rejects, "layers": asked.layers}
    figures = {"sizes": shape, "device": jax.devices()[0].device_kind, **counted, "shared/separate": ratios}
    print(json.dumps(figures, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

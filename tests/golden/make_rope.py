"""Writes rope.json: frequencies and scales of every rope type as `transformers` computes them (Python with torch)."""

import json
from pathlib import Path

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HEAD_DIM, MAX_POSITION = 16, 256
CASES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn_mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
        "long_factor": [2.0 + 0.5 * i for i in range(HEAD_DIM // 2)],
    },
}


def main() -> None:
    golden = []
    for name, parameters in CASES.items():
        parameters = {"rope_theta": 10_000.0, **parameters}
        config = LlamaConfig(
            hidden_size=4 * HEAD_DIM,
            num_attention_heads=4,
            head_dim=HEAD_DIM,
            max_position_embeddings=MAX_POSITION,
            rope_parameters=dict(parameters),
        )
        for seq_len in (40, 300):
            frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=seq_len)
            golden.append(
                {
                    "name": name,
                    "parameters": parameters,
                    "seq_len": seq_len,
                    "frequencies": [float(f) for f in frequencies],
                    "scale": float(scale),
                }
            )
    document = {"head_dim": HEAD_DIM, "max_position_embeddings": MAX_POSITION, "cases": golden}
    Path(__file__).with_name("rope.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Computes rope.json anew: what `transformers` makes of the rope parameters in it (Python with torch)."""

import json
from pathlib import Path

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FILE = Path(__file__).with_name("rope.json")


def main() -> None:
    golden = json.loads(FILE.read_text())
    for case in golden["cases"]:
        config = LlamaConfig(
            hidden_size=4 * golden["head_dim"],
            num_attention_heads=4,
            head_dim=golden["head_dim"],
            max_position_embeddings=golden["max_position_embeddings"],
            rope_parameters=dict(case["parameters"]),
        )
        initialise = ROPE_INIT_FUNCTIONS[case["parameters"]["rope_type"]]
        frequencies, scale = initialise(config, "cpu", seq_len=case["seq_len"])
        case |= {"frequencies": [float(f) for f in frequencies], "scale": float(scale)}
    FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Writes the table of model families into docs/families.md, from the table that the library reads.

python docs/families/write.py
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from elastic_jax.config.families import FAMILIES, Family, FamilyTraits

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "families.md"
GOLDEN = DOCS.parent / "tests" / "golden"
BEGIN, END = "<!-- table of families: python docs/families/write.py -->", "<!-- end of the table -->"
WORDS = {
    ("qkv_bias", True): "biases on q, k, v",
    ("qk_norm", "head"): "norm of queries and keys in each head",
    ("qk_norm", "projection"): "norm of queries and keys over all heads",
    ("norms", "after"): "norms after attention and MLP",
    ("activation", "relu2"): "squared ReLU",
    ("gated_mlp", False): "MLP without gate",
}


def table() -> str:
    """The table as Markdown, one row for each family."""
    lines = ["| `model_type` | models | differs from Llama by | window | rope | golden models |", "|" + "---|" * 6]
    for family, traits in FAMILIES.items():
        cells = (f"`{family}`", traits.models, _differences(traits), _window(traits), _rope(traits), _golden(family))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _differences(traits: FamilyTraits) -> str:
    found = [WORDS[item] for item in traits.fixed.items()]
    found += [f"`{name}`" for name in traits.fields]
    found += [f"fused `{name.rpartition('.')[2]}`" for name in traits.fused]
    return ", ".join(found) or "nothing"


def _window(traits: FamilyTraits) -> str:
    return "one for all layers, or none" if traits.window else "none"


def _rope(traits: FamilyTraits) -> str:
    types = "all types" if len(traits.rope_types) > 2 else " and ".join(traits.rope_types)
    types += "".join(f", `{name}`" for name in traits.rope_fields)
    return types + (", not in every layer" if traits.rope_by_layer else "")


def _golden(family: Family) -> str:
    """Golden models of the family, and how many tokens they read."""
    found = []
    for file in sorted(GOLDEN.glob("*/config.json")):
        if json.loads(file.read_text())["model_type"] == family and (file.parent / "golden.npz").exists():
            tokens = np.load(file.parent / "golden.npz")["input_ids"].shape[-1]
            found.append(f"{file.parent.name} ({tokens})")
    return ", ".join(found)


def written(page: str) -> str:
    """The page with the table as it is now."""
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:start]}\n\n{table()}\n\n{page[end:]}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))

"""Draws the figures of the concept pages from the library's own code; seconds on a CPU, the same every time.

python docs/figures/draw.py            writes into docs/images
python docs/figures/draw.py FOLDER     writes elsewhere
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from elastic_jax.config import HeadMode, ModelConfig, RouterConfig
from elastic_jax.generation import bucket
from elastic_jax.kv_cache.config import CacheConfig
from elastic_jax.kv_cache.pages import plan_pages
from elastic_jax.kv_cache.quantized import QuantizedCache
from elastic_jax.kv_cache.size import quantized_bytes
from elastic_jax.plots import save_figure
from elastic_jax.routing import Routing
from elastic_jax.settings import shipped_configs
from pallas_kernels import check_attention, select_blocks
from pallas_kernels.decode_attention.view import hole_mask
from pallas_kernels.hybrid_attention.reference import allowed_pairs
from pallas_kernels.schedule import AttentionSpec

SEEN, SKIPPED, FUTURE = "#30638e", "#f2c9a1", "#ffffff"


def draw_patterns() -> Figure:
    """Which keys each query sees, by the dense mask of the reference implementation."""
    tokens, rule = 256, {"sink_blocks": 1, "local_blocks": 4, "block_size": 16}
    q, k = made_up_queries_and_keys(tokens, head_dim=16)
    chosen = select_blocks(q, k, threshold=0.9, stride=4, block_size=16, impl="reference")
    masks = {
        "fa-ssa": {},
        "fa-xa": {"block_mask": chosen},
        "xa-ssa": {"full_block_mask": chosen},
    }
    causal = np.tril(np.ones((tokens, tokens), bool))
    figure = Figure(figsize=(8.4, 6.0), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for column, (pattern, mask) in enumerate(masks.items()):
        zeros = jnp.zeros((1, tokens, 1, 16))
        call = check_attention(zeros, zeros, zeros, **rule, **mask)
        for mode in HeadMode:
            seen = np.asarray(allowed_pairs(call, jnp.array([[bool(mode)]]))).reshape(tokens, tokens)
            axis = grid[int(mode), column]
            shades = np.where(seen, 2, np.where(causal, 1, 0))
            axis.imshow(shades, cmap=ListedColormap([FUTURE, SKIPPED, SEEN]), interpolation="nearest")
            skipped = 1 - seen.sum() / causal.sum()
            axis.set_title(f"{pattern}, {mode.name.lower()} head: {skipped:.0%} skipped", fontsize=9)
            axis.tick_params(labelsize=7)
    for axis in grid[1]:
        axis.set_xlabel("key", fontsize=8)
    for axis in grid[:, 0]:
        axis.set_ylabel("query", fontsize=8)
    legend(figure, {"seen": SEEN, "skipped": SKIPPED})
    return figure


def made_up_queries_and_keys(tokens: int, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Texts that return to their topics: neighbours are alike, and so are distant tokens of one topic."""
    rng = np.random.default_rng(3)
    topics = rng.normal(size=(5, head_dim))
    topic = np.repeat(rng.integers(0, 5, tokens // 16), 16)
    q, k = (1.8 * topics[topic] + 0.7 * rng.normal(size=(tokens, head_dim)) for _ in range(2))
    return tuple(jnp.asarray(x, jnp.float32)[None, :, None] for x in (q, k))


def draw_sparsity() -> Figure:
    """ESR by length for some MSRs, as `Routing.esr` computes it."""
    config = shipped_model("qwen3-8b")
    lengths = np.unique(np.geomspace(512, 131072, 60).astype(int))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for msr, shade in ((1.0, 1.0), (0.75, 0.8), (0.5, 0.6), (0.25, 0.4)):
        mode = some_heads_sparse(config, msr, rows=len(lengths))
        esr = Routing(jnp.asarray(mode)).esr(lengths, config)
        axis.plot(lengths, esr, color=SEEN, alpha=shade, label=f"MSR {msr:.2f}")
    visible = (config.router.sink_blocks + config.router.local_blocks) * config.router.block_size
    axis.axvline(visible, color="grey", linestyle=":", linewidth=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks([512 * 4**i for i in range(5)], [f"{512 * 4**i:,}" for i in range(5)])
    axis.set_ylim(0, 1)
    axis.set_xlabel("tokens of the prompt")
    axis.set_ylabel("ESR: share of the pairs skipped")
    axis.legend(fontsize=8)
    return figure


def some_heads_sparse(config: ModelConfig, msr: float, rows: int = 1) -> np.ndarray:
    """Modes `[L, rows, K]` with a share `msr` of the heads of the whole model sparse."""
    pairs = config.num_layers * config.num_kv_heads
    mode_P = np.full(pairs, HeadMode.FULL, np.int8)
    mode_P[: round(msr * pairs)] = HeadMode.SPARSE
    return np.repeat(mode_P.reshape(config.num_layers, 1, config.num_kv_heads), rows, axis=1)


def shipped_model(name: str) -> ModelConfig:
    return ModelConfig.from_hf(json.loads((shipped_configs() / "models" / f"{name}.json").read_text(encoding="utf-8")))


PLACES = {
    "2-bit page": "#8fb8de",
    "outlier pool": "#d1495b",
    "outlier store": "#edae49",
    "exact ring": "#2a9d54",
    "not kept": "#e6e6e6",
}


def draw_cache_layout() -> Figure:
    """Where every token of a row lies, read from the arrays of a real cache: a full and a sparse head."""
    tokens, group = 700, 32
    config = CacheConfig(bits=2, group=group, residual=32, outliers=3, outlier_store=8, untraced_layers=0)
    spec = AttentionSpec(sink_blocks=1, local_blocks=4, block_size=group, window=None, scale=1.0)
    rng = np.random.default_rng(0)
    k = rng.normal(size=(1, 1, tokens, 2, 32)) + 3
    k[:, :, rng.choice(tokens, 9, replace=False)] *= 0.1
    mode = np.array([[[HeadMode.FULL, HeadMode.SPARSE]]], np.int8)
    plan = plan_pages(mode, np.array([tokens]), config, spec)
    kv = jnp.asarray(k, jnp.float32), jnp.asarray(k, jnp.float32)
    cache = QuantizedCache.from_prefill(kv, jnp.array([tokens]), jnp.asarray(mode), plan, config, spec)

    columns = -(-tokens // group)
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    for axis, head in zip(figure.subplots(1, 2, sharey=True), range(2), strict=True):
        place = np.full(columns * group, np.nan)
        place[:tokens] = places_of(cache, head, tokens, list(PLACES))
        axis.imshow(
            place.reshape(columns, group).T,
            cmap=ListedColormap(list(PLACES.values())),
            norm=BoundaryNorm(np.arange(len(PLACES) + 1) - 0.5, len(PLACES)),
            aspect="auto",
            interpolation="nearest",
        )
        axis.set_xticks(range(0, columns, 5))
        axis.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
        axis.grid(which="minor", axis="x", color="white", linewidth=0.8)
        axis.tick_params(labelsize=7, which="both", bottom=False)
        axis.set_title(f"{HeadMode(int(mode[0, 0, head])).name.lower()} head, {tokens} tokens", fontsize=9)
        axis.set_xlabel(f"group of {group} tokens", fontsize=8)
        if head == 0:
            axis.set_ylabel("token of the group", fontsize=8)
    legend(figure, PLACES)
    return figure


def places_of(cache: QuantizedCache, head: int, tokens: int, names: list[str]) -> np.ndarray:
    """Index in `names` of the place of each token of the first layer and row."""
    group, quantized = cache.config.group, int(cache.quantized[0])
    place = np.full(tokens, names.index("not kept"))
    table = np.asarray(cache.table[0, 0, head])
    holder = {int(table[g]): g for g in range(quantized // group)}  # of groups that share a page, the last one has it
    for page, g in holder.items():
        holes = np.asarray(hole_mask(cache.pages.holes[page]))
        place[g * group : (g + 1) * group][~holes] = names.index("2-bit page")
    outliers = np.asarray(cache.outlier_pos[0, 0, head])
    pool = cache.config.outliers
    for slots, name in ((outliers[:pool], "outlier pool"), (outliers[pool:], "outlier store")):
        place[slots[slots >= 0]] = names.index(name)
    place[quantized:] = names.index("exact ring")
    return place


def draw_cache_bytes() -> Figure:
    """Bytes of the cache of one row by its length, as they are counted before anything is allocated."""
    config = shipped_model("qwen3-8b")
    router = RouterConfig()
    spec = AttentionSpec(router.sink_blocks, router.local_blocks, router.block_size, None, 1.0)
    lengths = [2**i for i in range(8, 18)]
    layers, heads, head_dim = config.num_layers, config.num_kv_heads, config.head_dim

    def counted(tokens: int, bits: int, msr: float) -> int:
        if bits == 16:
            return 2 * layers * heads * bucket(tokens) * head_dim * 2
        mode = some_heads_sparse(config, msr)
        return quantized_bytes(mode, np.array([tokens]), head_dim, 2, CacheConfig(bits=bits), spec)

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    for bits, msr, style in ((16, 0.0, "k-"), (8, 0.0, "C0-"), (4, 0.0, "C1-"), (2, 0.0, "C2-"), (2, 0.7, "C2--")):
        label = f"{bits} bits, {'every head full' if msr == 0 else f'{msr:.0%} of the heads sparse'}"
        axis.plot(lengths, [counted(n, bits, msr) / 2**20 for n in lengths], style, label=label)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(lengths[::3], [f"{n:,}" for n in lengths[::3]])
    axis.set_yticks([2**i for i in range(4, 16, 2)], [f"{2**i:,}" for i in range(4, 16, 2)])
    axis.set_xlabel("tokens of the row")
    axis.set_ylabel("MiB")
    axis.legend(fontsize=8)
    return figure


def legend(figure: Figure, colours: dict[str, str]) -> None:
    handles = [Patch(facecolor=colour, edgecolor="grey", label=name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


FIGURES = {
    "patterns.png": draw_patterns,
    "sparsity.png": draw_sparsity,
    "cache_layout.png": draw_cache_layout,
    "cache_bytes.png": draw_cache_bytes,
}


def main(folder: Path) -> None:
    for name, draw in FIGURES.items():
        print(save_figure(draw(), folder / name))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "images")

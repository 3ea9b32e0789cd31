from dataclasses import replace

import numpy as np
import pytest
from tiny import CONFIG
from train_run import tiny_config, tiny_samples

from elastic_jax.model import param_shapes
from train.config import GateConfig
from train.data.packing import Rows, RowShape
from train.data.pipeline import in_batches, whole_epoch
from train.loop.throughput import peak_flops, speed
from train.router.run import router_step_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L40S", 362e12),
        ("cpu", None),
    ],
)
def test_the_peak_of_a_device_is_found_by_its_kind(kind, peak):
    assert peak_flops(kind) == peak


def test_figures_that_cannot_be_known_are_left_out():
    assert speed(100, 2.0, None) == {"seconds": 2.0, "tokens_per_second": 50.0}
    assert speed(100, 2.0, 8e9) == {"seconds": 2.0, "tokens_per_second": 50.0, "flops_per_second": 4e9}


def packed_samples() -> Rows:
    shape = RowShape(128, CONFIG.router.block_size, 3)
    rows = whole_epoch(tiny_samples(), shape)
    return in_batches(rows, len(rows), shape)[0]


def step_flops(rows: Rows, sparse: float, **changes) -> float:
    config = replace(tiny_config(), **changes)
    return router_step_flops(CONFIG, config, rows, {"msr": [sparse] * 5})


EACH_PAIR = 12 * CONFIG.head_dim * CONFIG.num_heads * CONFIG.num_layers


def test_flops_count_each_weight_twice_and_the_head_where_a_label_is_learnt():
    shapes = {path: spec.shape for path, spec in param_shapes(CONFIG).items() if not path.startswith("layers.router.")}
    weights = sum(np.prod(shape) for path, shape in shapes.items() if path.startswith("layers.") and "kernel" in path)
    lengths = np.array([len(sample.input_ids) for sample in tiny_samples()])
    products = weights * lengths.sum() + CONFIG.hidden_size * CONFIG.vocab_size * (lengths - 1).sum()
    pairs = (lengths * (lengths + 1) / 2).sum()
    assert step_flops(packed_samples(), 0.0) == pytest.approx(4 * products + EACH_PAIR * pairs)


def test_flops_count_the_pairs_that_the_routing_asks_for():
    rows = packed_samples()
    block, kept = CONFIG.router.block_size, CONFIG.router.local_blocks
    skipped = 0
    for sample in tiny_samples():
        places = np.arange(len(sample.input_ids)) // block
        query, key = places[:, None], places[None]
        skipped += ((key >= CONFIG.router.sink_blocks) & (key <= query - kept)).sum()
    assert skipped > 0
    assert step_flops(rows, 0.0) - step_flops(rows, 1.0) == pytest.approx(EACH_PAIR * skipped, rel=1e-5)
    assert step_flops(rows, 0.0) - step_flops(rows, 0.5) == pytest.approx(EACH_PAIR * skipped / 2, rel=1e-5)


def test_flops_grow_with_draws_and_not_with_padding():
    rows = packed_samples()
    empty = Rows(*(np.full_like(field, value) for field, value in zip(rows, (0, 0, 0, 0, 0, -1), strict=True)))
    assert step_flops(empty, 0.0) == 0
    both = Rows(*(np.concatenate(pair) for pair in zip(rows, empty, strict=True)))
    assert step_flops(both, 0.0) == step_flops(rows, 0.0)
    assert step_flops(rows, 0.0, gates=GateConfig(draws=3)) == 3 * step_flops(rows, 0.0)

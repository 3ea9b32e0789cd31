"""Gradients against finite differences of the same implementation, along random directions."""

import jax
import numpy as np
import pytest
from attention_cases import NAMED
from op_table import Row, inputs_of, operands, program

STEP = 0.01


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("op", ["hybrid", "dual", "routed"])
def test_gradients_are_slopes(op, impl):
    """In float32 a central difference is good to about STEP**2 = 1e-4; sums of products are taken in float64."""
    row = Row(op, NAMED["packed"])
    *qkv, z, d_out = operands(inputs_of(row)[0])
    run = jax.jit(program(row, impl))
    results = run(*qkv, z, d_out)
    rng = np.random.default_rng(2)

    def loss(position, shift):
        moved = run(*(x + shift if i == position else x for i, x in enumerate(qkv)), z, d_out)
        weights = {"full": 1.0, "sparse": 0.5, "out": 1.0}
        sums = (
            weight * np.vdot(np.float64(d_out), np.float64(moved[k])) for k, weight in weights.items() if k in moved
        )
        return sum(sums)

    for position, name in enumerate(("dq", "dk", "dv")):
        gradient = np.float64(results[name])
        direction = rng.normal(size=gradient.shape).astype(np.float32)
        slope = (loss(position, STEP * direction) - loss(position, -STEP * direction)) / (2 * STEP)
        assert abs(slope - np.vdot(gradient, direction)) <= 1e-3 * np.linalg.norm(gradient), name

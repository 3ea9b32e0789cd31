"""Gradients against finite differences of the same implementation, along random directions."""

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import make_inputs
from attention_ops import NAMED, OPS, outputs_and_gradients

STEP = 0.01


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_slopes(op, impl):
    """In float32 a central difference is good to about STEP**2 = 1e-4; sums of products are taken in float64."""
    name = "packed"
    inputs = make_inputs(NAMED[name])
    run = outputs_and_gradients(op, impl, name)
    operands = [inputs.q, inputs.k, inputs.v]
    _, gradients = run(*operands, inputs.d_out)
    rng = np.random.default_rng(2)

    def loss(position, shift):
        moved = [x + shift if i == position else x for i, x in enumerate(operands)]
        outs, _ = run(*moved, inputs.d_out)
        d_out = np.asarray(inputs.d_out, np.float64)
        return sum(
            (weight * d_out * np.asarray(out, np.float64)).sum()
            for weight, out in zip((1.0, 0.5)[: len(outs)], outs, strict=True)
        )

    for position, gradient in enumerate(gradients):
        direction = jnp.asarray(rng.normal(size=gradient.shape), jnp.float32)
        slope = (loss(position, STEP * direction) - loss(position, -STEP * direction)) / (2 * STEP)
        gradient, direction = (np.asarray(x, np.float64) for x in (gradient, direction))
        assert abs(slope - (gradient * direction).sum()) <= 1e-3 * np.linalg.norm(gradient), "qkv"[position]

import jax
import jax.numpy as jnp
import pytest
from attention_cases import CASES, Case, assert_close, make_inputs, random_block_masks
from tpu_tools import interpreted, quick_jit

from pallas_kernels import dual_attention, routed_attention

NAMED = {case.name: case for case in CASES}
PARAMETERS = [pytest.param(c, id=c.name, marks=[] if c.name == "many blocks" else [pytest.mark.slow]) for c in CASES]


def routed_value_and_grads(inputs, impl, **masks):
    def run(q, k, v, z):
        out, pull = jax.vjp(lambda *a: routed_attention(*a, **inputs.options, **masks, impl=impl), q, k, v, z)
        return out, *pull(inputs.d_out)

    return jax.block_until_ready(quick_jit(run)(inputs.q, inputs.k, inputs.v, inputs.z))


def compare_routed(inputs, tolerance, **masks):
    with interpreted(2):
        got = routed_value_and_grads(inputs, "tpu", **masks)
    wanted = routed_value_and_grads(inputs, "reference", **masks)
    for name, a, b in zip(("out", "dq", "dk", "dv", "dz"), got, wanted, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b, tolerance, name)


@pytest.mark.parametrize("case", PARAMETERS)
def test_routed_equals_autodiff_of_the_mixture(case):
    compare_routed(make_inputs(case), 1e-5)


MASKED = Case("an odd number of blocks", 70, kv_heads=2, groups=2, lengths=(66,))


@pytest.mark.parametrize(
    "case, listed",
    [
        (MASKED, ("block_mask",)),
        pytest.param(MASKED, ("full_block_mask",), marks=pytest.mark.slow),
        pytest.param(NAMED["packed"], ("block_mask", "full_block_mask"), marks=pytest.mark.slow),
        pytest.param(NAMED["last queries"], ("block_mask",), marks=pytest.mark.slow),
    ],
)
def test_routed_between_listed_and_other_blocks(case, listed):
    compare_routed(make_inputs(case), 1e-5, **dict(zip(listed, random_block_masks(case), strict=False)))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_routed_in_bfloat16(masked):
    case = NAMED["packed"]
    masks = {"block_mask": random_block_masks(case)[0]} if masked else {}
    compare_routed(make_inputs(case, jnp.bfloat16), 2e-2, **masks)


@pytest.mark.slow
@pytest.mark.parametrize("name, masked", [("packed", False), ("last queries", False), ("packed", True)])
def test_dual_equals_two_dense_attentions(name, masked):
    inputs = make_inputs(NAMED[name])
    masks = {"block_mask": random_block_masks(NAMED[name])[0]} if masked else {}

    def run(impl):
        def both(q, k, v):
            outs, pull = jax.vjp(lambda *a: dual_attention(*a, **inputs.options, **masks, impl=impl), q, k, v)
            return *outs, *pull((inputs.d_out, inputs.d_out * 0.5))

        return jax.block_until_ready(quick_jit(both)(inputs.q, inputs.k, inputs.v))

    with interpreted(2):
        got = run("tpu")
    for what, a, b in zip(("full", "sparse", "dq", "dk", "dv"), got, run("reference"), strict=True):
        assert_close(a, b, 1e-5, what)


@pytest.mark.slow
def test_routed_without_gradients_runs_the_chosen_branch_only():
    inputs = make_inputs(NAMED["many blocks"])
    with interpreted(2):
        got = quick_jit(lambda z: routed_attention(inputs.q, inputs.k, inputs.v, z, **inputs.options, impl="tpu"))(
            inputs.z
        )
    wanted = routed_attention(inputs.q, inputs.k, inputs.v, inputs.z, **inputs.options, impl="reference")
    assert_close(got, wanted, 1e-5)
    assert got.dtype == jnp.float32

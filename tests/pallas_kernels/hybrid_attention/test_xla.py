import jax
import jax.numpy as jnp
import pytest
from attention_cases import CASES, PARAMETERS, assert_close, make_inputs, random_block_masks

from pallas_kernels import hybrid_attention

NAMED = {case.name: case for case in CASES}


def value_and_grads(inputs, impl, **masks):
    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(lambda *a: hybrid_attention(*a, inputs.mode, **inputs.options, **masks, impl=impl), q, k, v)
        return out, *pull(inputs.d_out)

    return run(inputs.q, inputs.k, inputs.v)


@pytest.mark.parametrize("case", PARAMETERS)
def test_equals_the_dense_reference(case):
    inputs = make_inputs(case)
    got, wanted = (value_and_grads(inputs, impl) for impl in ("xla", "reference"))
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, name)


def test_bfloat16_inputs_accumulate_in_float32():
    case = NAMED["many blocks"]
    got = value_and_grads(make_inputs(case, jnp.bfloat16), "xla")
    wanted = value_and_grads(make_inputs(case, jnp.bfloat16), "reference")
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        assert a.dtype == jnp.bfloat16
        assert_close(a, b, 2e-2, name)


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("name", ["padded", "packed", "last queries"])
def test_padding_may_hold_anything(name, impl):
    inputs = make_inputs(NAMED[name])
    ids, lengths = inputs.options["segment_ids"], inputs.options["lengths"]
    exists = ids > 0 if lengths is None else jnp.arange(inputs.k.shape[1]) < lengths[:, None]

    def poison(x, value):
        return jnp.where(exists[:, -x.shape[1] :, None, None], x, value)

    def run(value):
        q, k, v, d_out = (poison(x, value) for x in (inputs.q, inputs.k, inputs.v, inputs.d_out))
        out, pull = jax.vjp(lambda *a: hybrid_attention(*a, inputs.mode, **inputs.options, impl=impl), q, k, v)
        return out, *pull(d_out)

    for clean, dirty in zip(jax.jit(run)(0.0), jax.jit(run)(jnp.nan), strict=True):
        assert bool((clean == dirty).all())
        assert bool((jnp.where(exists[:, -clean.shape[1] :, None, None], 0, clean) == 0).all())


def test_modes_are_data():
    """One compiled program serves every routing."""
    inputs = make_inputs(NAMED["many blocks"])
    run = jax.jit(lambda mode: hybrid_attention(inputs.q, inputs.k, inputs.v, mode, **inputs.options))
    for mode in (jnp.zeros_like(inputs.mode), jnp.ones_like(inputs.mode)):
        wanted = hybrid_attention(inputs.q, inputs.k, inputs.v, mode, **inputs.options, impl="reference")
        assert_close(run(mode), wanted, 1e-5)
    assert run._cache_size() == 1


@pytest.mark.parametrize(
    "name, listed",
    [
        ("many blocks", ("block_mask", "full_block_mask")),
        ("packed", ("block_mask",)),
        ("last queries", ("full_block_mask",)),
        pytest.param("window in packed rows", ("block_mask",), marks=pytest.mark.slow),
        pytest.param("padded", ("block_mask",), marks=pytest.mark.slow),
        pytest.param("published, 700", ("block_mask", "full_block_mask"), marks=pytest.mark.slow),
    ],
)
def test_listed_blocks_equal_the_dense_reference(name, listed):
    inputs = make_inputs(NAMED[name])
    masks = dict(zip(listed, random_block_masks(NAMED[name]), strict=False))
    got, wanted = (value_and_grads(inputs, impl, **masks) for impl in ("xla", "reference"))
    for what, a, b in zip(("out", "dq", "dk", "dv"), got, wanted, strict=True):
        assert_close(a, b, 1e-5, what)


def test_blocks_that_no_head_lists_are_never_read():
    """Values that are not numbers would show, since zero times them is not zero."""
    inputs = make_inputs(NAMED["many blocks"])
    mask = random_block_masks(NAMED["many blocks"])[0].at[..., jnp.array([1, 4, 5])].set(False)
    block = jnp.arange(inputs.v.shape[1]) // 16
    unread = jnp.isin(block, jnp.array([1, 4, 5]))[None, :, None, None]
    v = jnp.where(unread, jnp.nan, inputs.v)
    options = inputs.options | {"block_mask": mask, "full_block_mask": mask, "impl": "xla"}
    out = jax.jit(lambda v: hybrid_attention(inputs.q, inputs.k, v, inputs.mode, **options))(v)
    assert bool(jnp.isfinite(out).all())
    assert bool((out != 0).any())

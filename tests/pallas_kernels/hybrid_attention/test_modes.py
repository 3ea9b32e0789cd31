import jax
import jax.numpy as jnp
from attention_cases import NAMED, assert_close, make_inputs, random_block_masks

from pallas_kernels import hybrid_attention


def test_modes_are_data():
    """One compiled program serves every routing."""
    inputs = make_inputs(NAMED["many blocks"])
    run, reference = (
        jax.jit(
            lambda mode, impl=impl: hybrid_attention(inputs.q, inputs.k, inputs.v, mode, **inputs.options, impl=impl)
        )
        for impl in ("xla", "reference")
    )
    for mode in (jnp.zeros_like(inputs.mode), jnp.ones_like(inputs.mode)):
        assert_close(run(mode), reference(mode), 1e-5)
    assert run._cache_size() == 1


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

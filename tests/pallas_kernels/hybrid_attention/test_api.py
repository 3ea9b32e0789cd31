import jax
import jax.numpy as jnp
import pytest
from triton_interpreter import interpreted

from pallas_kernels import dual_attention, hybrid_attention

Q, KV = jnp.ones((2, 40, 6, 8)), jnp.ones((2, 40, 2, 8))
MODE = jnp.zeros((2, 2), jnp.int8)
IDS = jnp.ones((2, 40), jnp.int32)


def call(q=Q, k=KV, v=KV, mode=MODE, **options):
    return hybrid_attention(q, k, v, mode, **({"block_size": 16} | options))


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"mode": jnp.zeros((2, 6), jnp.int8)}, "wanted (2, 2)"),
        ({"mode": jnp.zeros((2, 1, 2), jnp.int8)}, "needs segment_ids"),
        ({"mode": jnp.full((2, 2), 2)}, "holds 2"),
        ({"k": jnp.ones((2, 40, 4, 8)), "v": jnp.ones((2, 40, 4, 8))}, "multiple of KV heads"),
        ({"k": KV[:, :0], "v": KV[:, :0]}, "non-empty"),
        ({"k": KV[:, :30], "v": KV[:, :30]}, "40 queries but 30 keys"),
        ({"v": KV.astype(jnp.bfloat16)}, "bfloat16"),
        ({"q": Q.astype(jnp.int32)}, "floating"),
        ({"lengths": jnp.ones((3,), jnp.int32)}, "lengths has shape (3,)"),
        ({"segment_ids": IDS[:, :39]}, "wanted (2, 40)"),
        ({"segment_ids": IDS.at[1, 20:].set(2)}, "segment 2 of row 1 starts (or resumes) at token 20"),
        ({"segment_ids": IDS.at[1, 16:32].set(2)}, "segment 1 of row 1 starts (or resumes) at token 32"),
        ({"segment_ids": IDS * 3, "mode": jnp.zeros((2, 2, 2))}, "segment_ids holds 3 and mode has shape (2, 2, 2)"),
        ({"segment_ids": -IDS}, "segment_ids holds -1"),
        ({"segment_ids": IDS.astype(jnp.float32)}, "segment_ids is float32"),
        ({"lengths": jnp.array([3, 41])}, "lengths is [3, 41]"),
        ({"local_blocks": 0}, "local_blocks is 0"),
        ({"window": 0}, "window is 0"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"impl": "cuda"}, "unknown impl 'cuda'"),
        ({"mode": jnp.full((2, 2), -1)}, "holds -1"),
        ({"mode": jnp.full((2, 2), 0.5)}, "holds 0.5"),
        ({"q": Q[:, :0]}, "non-empty"),
        ({"block_mask": jnp.ones((2, 2, 3, 3), jnp.bool_)}, "wanted bool(2, 6, 3, 3)"),
        ({"full_block_mask": jnp.ones((2, 6, 3, 2), jnp.bool_)}, "full_block_mask is bool(2, 6, 3, 2)"),
        ({"block_mask": jnp.ones((2, 6, 3, 3))}, "block_mask is float32"),
    ],
)
def test_bad_input_is_named(arguments, words):
    for impl in ("reference", "xla"):
        with pytest.raises(ValueError) as error:
            call(**({"impl": impl} | arguments))
        assert words in str(error.value)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_a_mode_that_is_only_known_at_run_time_counts_as_sparse_unless_zero(impl):
    v = KV * jnp.arange(40.0)[None, :, None, None]
    run = jax.jit(lambda mode: call(mode=mode, v=v, local_blocks=1, sink_blocks=0, impl=impl))
    odd, sparse, full = (run(jnp.array([[0, value], [value, 0]])) for value in (7, 1, 0))
    assert bool((odd == sparse).all()) and not bool((odd == full).all())


def test_an_implementation_that_does_not_exist_never_falls_back():
    with pytest.raises(NotImplementedError, match="reference"):
        dual_attention(Q, KV, KV, block_size=16, impl="mosaic_gpu")


@pytest.mark.parametrize("impl", ["triton", "mosaic_gpu"])
def test_gpu_implementations_never_fall_back(impl):
    with pytest.raises(RuntimeError, match="need an NVIDIA GPU; the default device is 'cpu'"):
        call(impl=impl)


def test_checks_of_values_let_traced_arrays_through():
    ids = IDS.at[:, 20:].set(2)
    out = jax.eval_shape(lambda mode, ids: call(mode=mode, segment_ids=ids), MODE + 2, ids)
    assert out.shape == Q.shape


def test_blocks_that_no_gpu_tile_divides_are_refused(monkeypatch):
    with interpreted(monkeypatch), pytest.raises(ValueError, match="block_size=24 on a GPU; wanted a multiple of 16"):
        call(block_size=24, impl="triton")

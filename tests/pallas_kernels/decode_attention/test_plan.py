import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decode_cases import decode_shapes

from pallas_kernels import decode_attention
from pallas_kernels.call import attention_spec
from pallas_kernels.decode_attention import tpu, triton
from pallas_kernels.decode_attention.api import REFUSALS
from pallas_kernels.decode_attention.plan import group_runs, token_limits
from pallas_kernels.decode_attention.view import fold_query_heads, unfold_query_heads
from pallas_kernels.schedule import visible_tokens
from pallas_kernels.tpu.decode import byte_order


@pytest.mark.parametrize("block, sink, local, window", [(16, 1, 2, None), (24, 3, 1, 50), (16, 0, 4, 7)])
def test_limits_and_runs_say_what_the_rule_says(block, sink, local, window):
    spec = attention_spec(64, sink_blocks=sink, local_blocks=local, block_size=block, window=window, scale=None)
    sparse, position, group = jnp.array([[False, True]] * 4), jnp.array([0, 31, 100, 190]), 32
    quantized = position // group * group
    limits = np.asarray(token_limits(sparse, position, 3, spec))[..., None]
    pos = np.arange(200)[None, None, None]
    seen = (pos >= limits[:, :, :, 0]) & (pos <= limits[:, :, :, 2]) & (
        (pos < sink * block) | (pos >= limits[:, :, :, 1])
    )  # fmt: skip
    q_pos = position[:, None, None, None] + jnp.arange(3)[None, None, :, None]
    np.testing.assert_array_equal(seen, visible_tokens(sparse[:, :, None, None], q_pos, pos, spec))

    runs = np.asarray(group_runs(sparse, position, quantized, group, spec))
    for b, k in np.ndindex(sparse.shape):
        first, n_sink, lo, steps = runs[b, k]
        visited = [first + n if n < n_sink else lo + n - n_sink for n in range(steps)]
        wanted = np.unique(np.flatnonzero(seen[b, k].any(0) & (pos[0, 0, 0] < quantized[b])) // group)
        assert len(set(visited)) == steps and set(wanted) <= set(visited)


def test_a_window_wider_than_int32_counts_sees_everything():
    spec = attention_spec(64, sink_blocks=1, local_blocks=2**25, block_size=128, window=None, scale=None)
    limits = token_limits(jnp.array([[True]]), jnp.array([5000]), 1, spec)
    np.testing.assert_array_equal(limits[0, 0, 0], [0, 0, 5000])


def test_folded_rows_keep_the_query_heads_of_a_kv_head_together():
    q = jnp.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = fold_query_heads(q, 2)
    assert (rows[1, 1, 1 * 3 + 2] == q[1, 2, 2 + 1]).all()
    assert (unfold_query_heads(rows, 3) == q).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_bytes_of_words_name_every_token_once(bits):
    words = 128 * bits // 32
    assert sorted(byte_order(np.arange(128), words, bits)) == list(range(128))


def test_what_a_kernel_does_not_take_is_refused_with_a_way_out(monkeypatch):
    odd, view, *_ = decode_shapes(96 * 8, group=96)
    assert "groups of a power of two of tokens; got 96" in triton.why_not(odd, view)
    wide, view, *_ = decode_shapes(1024, head_dim=512)
    assert "head_dim up to 256; got 512" in triton.why_not(wide, view)
    many, view, *_ = decode_shapes(1024, queries=8, groups=16)
    assert "got 128" in triton.why_not(many, view)
    short, view, *_ = decode_shapes(1024, group=64)
    assert tpu.why_not(short, view) is None
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    assert "groups of a multiple of 128 tokens; got 64" in tpu.why_not(short, view)
    assert all(refusal(*decode_shapes(1024)[:2]) is None for refusal in REFUSALS.values())


def test_exact_tokens_beyond_the_memory_of_a_tpu_are_refused_with_both_sizes():
    inputs = decode_shapes(1024, slots=60_000)
    with pytest.raises(ValueError, match=r"wanted at most 60\. Use impl='xla'") as error:
        jax.eval_shape(lambda *a: decode_attention(*a, impl="tpu"), *inputs)
    need = float(re.search(r"needs (\S+) MiB .* for 60000 exact tokens", str(error.value))[1])
    keys_and_values = 2 * 60_000 * 128 * 2 / 2**20
    assert need > 60 and 2 * keys_and_values < need < 3 * keys_and_values, "two buffers, and what the kernel computes"


def test_auto_falls_back_to_xla_where_the_kernel_refuses(monkeypatch):
    q, view, position, mode = decode_shapes(96 * 8, group=96)
    monkeypatch.setattr("pallas_kernels.dispatch.preferred", lambda: ("triton", "xla"))
    assert jax.eval_shape(decode_attention, q, view, position, mode).shape == q.shape
    with pytest.raises(NotImplementedError, match="power of two"):
        jax.eval_shape(lambda *a: decode_attention(*a, impl="triton"), q, view, position, mode)

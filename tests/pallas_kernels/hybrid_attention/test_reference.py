import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import NAMED, assert_close, make_inputs

from pallas_kernels import hybrid_attention


def token_by_token(inputs, case):
    """The definition as loops over queries and heads, in float64, with positions counted inside each segment."""
    q, k, v = (np.asarray(x, np.float64) for x in (inputs.q, inputs.k, inputs.v))
    (batch, queries, heads, head_dim), keys = q.shape, k.shape[1]
    ids = np.ones((batch, keys), int) if case.segments is None else np.asarray(case.segment_ids())
    if case.lengths is not None:
        ids = np.where(np.arange(keys) < np.asarray(case.lengths)[:, None], ids, 0)
    out = np.zeros_like(q)
    for b, t, n in np.ndindex(batch, queries, heads):
        at, kv_head = keys - queries + t, n // case.groups
        if ids[b, at] == 0:
            continue
        sequence = np.flatnonzero(ids[b] == ids[b, at])
        own, others = at - sequence[0], sequence - sequence[0]
        seen = others <= own
        if case.window is not None:
            seen &= own - others < case.window
        mode = inputs.mode[b, kv_head] if inputs.mode.ndim == 2 else inputs.mode[b, ids[b, at] - 1, kv_head]
        if mode == 1:
            blocks = others // case.block
            seen &= (blocks < case.sink) | (blocks > own // case.block - case.local)
        chosen = sequence[seen]
        scores = k[b, chosen, kv_head] @ q[b, t, n] / np.sqrt(head_dim)
        weights = np.exp(scores - scores.max())
        out[b, t, n] = weights @ v[b, chosen, kv_head] / weights.sum()
    return out


@pytest.mark.parametrize("name", ["many blocks", "padded", "last queries", "packed", "window in packed rows"])
def test_equals_loops_over_tokens(name):
    inputs = make_inputs(NAMED[name])
    got = hybrid_attention(inputs.q, inputs.k, inputs.v, inputs.mode, **inputs.options, impl="reference")
    assert_close(got, token_by_token(inputs, NAMED[name]), 2e-6)


def test_block_masks_replace_the_patterns_of_their_heads():
    """The streaming pattern as a mask equals streaming; a causal mask for the full heads changes nothing."""
    inputs = make_inputs(NAMED["many blocks"])
    batch, tokens, heads, _ = inputs.q.shape
    row = np.arange(-(-tokens // 16))
    streaming = (row < 1) | (row > row[:, None] - 2)
    masks = [jnp.broadcast_to(jnp.asarray(m), (batch, heads, *m.shape)) for m in (streaming, row <= row[:, None])]

    def run(**options):
        return hybrid_attention(
            inputs.q, inputs.k, inputs.v, inputs.mode, **inputs.options, impl="reference", **options
        )

    assert_close(run(block_mask=masks[0], full_block_mask=masks[1]), run(), 1e-6)
    assert np.abs(run(full_block_mask=masks[0]) - run()).max() > 0.1

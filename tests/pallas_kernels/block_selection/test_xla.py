import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import NAMED, make_inputs

from pallas_kernels import select_blocks


def select(q, k, **options):
    return jax.jit(lambda q, k: select_blocks(q, k, **options))(q, k)


def sequence_by_sequence(q, k, block, stride, threshold):
    """One head of one sequence in float64 loops: `[T, H]` and `[S, H]` to bool `[T blocks, S blocks]` and margins."""
    (T, H), S = q.shape, k.shape[0]
    q = np.concatenate([np.zeros((S - T, H)), q])
    groups, blocks = -(-S // stride), -(-S // block)
    pad = np.zeros((groups * stride - S, H))
    q, k = (np.concatenate([x, pad]).reshape(groups, stride, H) for x in (q, k))
    keep, margins = np.zeros((blocks, blocks), bool), np.full(blocks, np.inf)
    for i in range(blocks):
        mass = np.zeros(blocks)
        for a in range(i * block // stride, min((i + 1) * block // stride, groups)):
            if (a + 1) * stride <= S - T:
                continue
            scores = np.array([(q[a, ::-1] * k[b]).sum() for b in range(a + 1)]) / (stride * np.sqrt(H))
            weights = np.exp(scores - scores.max())
            np.add.at(mass, np.arange(a + 1) * stride // block, weights / weights.sum())
        keep[i, [0, i]] = True
        spent, need = mass[[*{0, i}]].sum(), threshold * mass.sum()
        for j in sorted(set(range(1, i)), key=lambda j: -mass[j]):
            margins[i] = min(margins[i], abs(spent - need))
            if spent >= need:
                break
            keep[i, j], spent = True, spent + mass[j]
    return keep[(S - T) // block :], margins[(S - T) // block :]


@pytest.mark.parametrize("impl", ["reference", "xla"])
@pytest.mark.parametrize("name", ["many blocks", "padded", "packed", "last queries"])
def test_equals_loops_over_groups(name, impl):
    case, inputs = NAMED[name], make_inputs(NAMED[name])
    q, k = 3 * np.asarray(inputs.q, np.float64), np.asarray(inputs.k, np.float64)
    rows = {key: inputs.options[key] for key in ("lengths", "segment_ids")}
    got = np.asarray(select(3 * inputs.q, inputs.k, threshold=0.7, stride=4, block_size=case.block, impl=impl, **rows))
    keys, left = k.shape[1], k.shape[1] - q.shape[1]
    wanted, sure = np.zeros_like(got), np.ones(got.shape[:3], bool)
    for b, n in np.ndindex(got.shape[:2]):
        tokens = [keys if case.lengths is None else case.lengths[b]] if case.segments is None else case.segments[b]
        at = 0
        for length in tokens:
            if length <= left:
                continue
            part = slice(at, at + length)
            keep, margin = sequence_by_sequence(
                q[b, max(at - left, 0) : at + length - left, n], k[b, part, n // case.groups], case.block, 4, 0.7
            )
            i, j = at // case.block if left == 0 else 0, at // case.block
            wanted[b, n, i : i + len(keep), j : j + keep.shape[1]] = keep
            sure[b, n, i : i + len(keep)] = margin > 1e-4
            at += -(-length // case.block) * case.block
    np.testing.assert_array_equal(got[sure], wanted[sure])
    assert sure.mean() > 0.9


@pytest.mark.parametrize("compat", [False, True])
def test_the_first_block_and_the_diagonal_are_kept_and_nothing_above_it(compat):
    inputs = make_inputs(NAMED["many blocks"])
    kept = np.asarray(select(inputs.q, inputs.k, threshold=0.5, stride=4, block_size=16, compat=compat))
    row = np.arange(10)
    assert kept[..., 0].all() and kept[..., row, row].all()
    assert not kept[..., row > row[:, None]].any()
    assert 0 < kept[..., 1:].sum() < kept.size


def test_compat_keeps_a_block_more_in_the_first_chunk():
    inputs = make_inputs(NAMED["many blocks"])
    options = {"threshold": 0.5, "stride": 4, "block_size": 16}
    ours, theirs = (select(inputs.q, inputs.k, **options, compat=compat) for compat in (False, True))
    assert bool((theirs | ~ours).all())
    extra = theirs.sum(-1) - ours.sum(-1)
    assert int(extra.max()) >= 1 and int(extra[..., :2].max()) == 0


def test_heads_without_need_keep_the_ends_only():
    inputs = make_inputs(NAMED["many blocks"])
    options = {"stride": 4, "block_size": 16}
    heads = jnp.array([[True, False], [False, True]])
    got, everywhere = (select(inputs.q, inputs.k, **options, heads=h) for h in (heads, None))
    ends = np.eye(10, dtype=bool) | (np.arange(10) == 0)
    for b, n in np.ndindex(got.shape[:2]):
        np.testing.assert_array_equal(got[b, n], everywhere[b, n] if heads[b, n // 3] else ends)


@pytest.mark.parametrize("impl", ["reference", "xla"])
def test_padding_may_hold_anything_and_keeps_nothing(impl):
    inputs = make_inputs(NAMED["padded"])
    exists = (jnp.arange(150)[None] < inputs.options["lengths"][:, None])[..., None, None]

    def run(value):
        q, k = (jnp.where(exists, x, value) for x in (inputs.q, inputs.k))
        return select(q, k, stride=4, block_size=16, lengths=inputs.options["lengths"], impl=impl)

    clean, dirty = run(0.0), run(jnp.nan)
    np.testing.assert_array_equal(clean, dirty)
    assert not clean[3].any() and not clean[1, :, 3:].any() and bool(clean[2, :, 0, 0].all())


@pytest.mark.parametrize(
    "options, words",
    [
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"stride": 5}, "stride must divide"),
        ({"heads": jnp.ones((2, 6), jnp.bool_)}, "wanted bool(2, 2)"),
        ({"heads": jnp.ones((2, 2))}, "wanted bool(2, 2)"),
        ({"k": jnp.ones((2, 0, 2, 16))}, "non-empty"),
        ({"segment_ids": jnp.ones((2, 150), jnp.int32).at[0, 20:].set(2)}, "starts (or resumes) at token 20"),
        ({"impl": "cuda"}, "unknown impl"),
    ],
)
def test_bad_input_is_named(options, words):
    inputs = make_inputs(NAMED["many blocks"])
    options = {"k": inputs.k} | options
    with pytest.raises(ValueError) as error:
        select_blocks(inputs.q, options.pop("k"), **({"stride": 4, "block_size": 16} | options))
    assert words in str(error.value)


def test_no_gradient_flows_through_the_choice():
    inputs = make_inputs(NAMED["many blocks"])
    run = jax.jit(jax.grad(lambda q: select_blocks(q, inputs.k, stride=4, block_size=16).sum(dtype=jnp.float32)))
    assert not run(inputs.q).any()

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.block_selection import scoring
from pallas_kernels.block_selection.scoring import first_chunk_tokens

keep_blocks = jax.jit(scoring.keep_blocks)
MASS = [0.05, 0.30, 0.02, 0.25, 0.08, 0.30]


def kept(mass, *, start=0, diag, threshold, first_chunk=None):
    first_chunk = None if first_chunk is None else jnp.asarray(first_chunk)
    keep = keep_blocks(jnp.asarray(mass), jnp.asarray(start), jnp.asarray(diag), threshold, first_chunk)
    return set(np.flatnonzero(keep).tolist())


def test_published_vectors():
    assert kept(MASS, diag=5, threshold=0.8) == {0, 1, 3, 5}
    assert kept(MASS, diag=5, threshold=0.8, first_chunk=False) == {0, 1, 3, 5}
    assert kept(MASS, diag=5, threshold=0.8, first_chunk=True) == {0, 1, 3, 4, 5}


@pytest.mark.parametrize("first_chunk", [None, False, True])
def test_the_ends_stay_and_nothing_lies_outside(first_chunk):
    assert kept(np.zeros(6), diag=3, threshold=0.9, first_chunk=first_chunk) == {0, 3}
    assert kept([0.0] * 5 + [1.0], start=2, diag=4, threshold=0.9, first_chunk=first_chunk) <= {2, 3, 4}
    assert kept(MASS, start=4, diag=3, threshold=0.9, first_chunk=first_chunk) == set()
    assert kept([1.0], diag=0, threshold=0.9, first_chunk=first_chunk) == {0}


def rule(mass, diag, threshold, first_chunk):
    """The released code's selection in words: go down the list and stop once enough was taken."""
    given = {diag} if first_chunk else {0, diag}
    rest = sorted(set(range(diag + 1)) - given, key=lambda j: -mass[j])
    need, have = threshold * mass.sum(), sum(mass[j] for j in given)
    kept = {0, diag}
    for m, j in enumerate(rest):
        spent = have + mass[rest[:m]].sum() if not first_chunk else 0 if m == 0 else have + mass[rest[: m - 1]].sum()
        if spent >= need:
            break
        kept.add(j)
    return kept


@pytest.mark.parametrize("first_chunk", [False, True])
def test_equals_the_rule_in_words(first_chunk):
    rng = np.random.default_rng(0)
    rows = [(rng.dirichlet(np.full(12, 0.3)), int(rng.integers(12))) for _ in range(60)]
    mass = np.stack([np.where(np.arange(12) <= diag, m, 0) for m, diag in rows]).astype(np.float32)
    diags = np.array([diag for _, diag in rows])
    for threshold in (0.3, 0.8, 0.95):
        keep = keep_blocks(
            jnp.asarray(mass), jnp.zeros(60, int), jnp.asarray(diags), threshold, jnp.full(60, first_chunk)
        )
        for row, diag, got in zip(mass, diags, np.asarray(keep), strict=True):
            assert set(np.flatnonzero(got).tolist()) == rule(row.astype(float), diag, threshold, first_chunk)


def test_chunks_of_the_released_code():
    lengths = [1, 2048, 2049, 4096, 16_384, 20_000, 32_768, 65_536, 131_072, 1_000_000]
    chunks = [2048, 2048, 4096, 4096, 16_384, 8192, 8192, 4096, 2048, 2048]
    np.testing.assert_array_equal(first_chunk_tokens(jnp.asarray(lengths)), chunks)

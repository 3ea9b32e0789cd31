import jax.numpy as jnp
import numpy as np
import pytest

from elastic_jax.errors import ShapeError
from elastic_jax.layout import make_layout, pad_rows


def test_packed_positions_restart_in_every_sequence():
    segments = jnp.array([[1, 1, 1, 0, 2, 2, 2, 2, 3, 0, 0, 0]])
    layout = make_layout((1, 12), segment_ids=segments, num_segments=4, block_size=4)
    np.testing.assert_array_equal(layout.positions_BT[0], [0, 1, 2, 0, 0, 1, 2, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(layout.lengths_BM[0], [3, 4, 1, 0])
    np.testing.assert_array_equal(layout.seq_len_BT[0], [3, 3, 3, 0, 4, 4, 4, 4, 1, 0, 0, 0])


def test_padded_rows_are_one_sequence_each():
    layout = make_layout((2, 5), lengths=jnp.array([5, 2]))
    np.testing.assert_array_equal(layout.sequence_BT, [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])
    np.testing.assert_array_equal(layout.lengths_BM, [[5], [2]])
    assert not layout.packed


def test_rows_without_tokens_of_their_own_hold_one():
    ids, lengths = pad_rows([[5, 6], (), np.array([7])], 3, 4)
    np.testing.assert_array_equal(ids, [[5, 6, 0], [0, 0, 0], [7, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(lengths, [2, 0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": jnp.array([1]), "segment_ids": jnp.ones((1, 4), int)}, "both given"),
        ({"lengths": jnp.array([1, 2])}, r"want \(1,\)"),
        ({"lengths": jnp.array([5])}, "values from 0 to 4"),
        ({"segment_ids": jnp.ones((1, 5), int)}, r"want \(1, 4\)"),
    ],
)
def test_metadata_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ShapeError, match=message):
        make_layout((1, 4), **arguments)

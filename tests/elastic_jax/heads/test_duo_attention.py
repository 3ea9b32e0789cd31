"""Tables of DuoAttention, read and written."""

import json

import numpy as np
import pytest

from elastic_jax import Heads, RouterConfig, load_heads
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.heads import save_duo_attention

GATES = np.array([[1.0, -9.5e-05], [0.25, 1.0], [0.5, 0.0]], np.float32)


@pytest.fixture
def table(tmp_path):
    np.savetxt(tmp_path / "full_attention_heads.tsv", GATES, delimiter="\t")
    (tmp_path / "config.json").write_text(json.dumps({"lr": 0.02, "sink_size": 64, "recent_size": 257}))
    return tmp_path / "full_attention_heads.tsv"


def test_a_table_gives_an_order_and_its_geometry(table):
    for source in (table, table.parent):
        heads = load_heads(source)
        np.testing.assert_array_equal(heads.order, [[0, 5], [3, 1], [2, 4]])
        np.testing.assert_array_equal(heads.gates, GATES)
        np.testing.assert_array_equal(heads.modes(), [[0, 1], [1, 0], [0, 1]])
        assert heads.router == RouterConfig(sink_blocks=1, local_blocks=3) and heads.weights is None
    (table.parent / "config.json").unlink()
    assert load_heads(table).router == RouterConfig()


def test_round_trip(table, tmp_path):
    heads = load_heads(table)
    save_duo_attention(heads, tmp_path / "same")
    again = load_heads(tmp_path / "same")
    np.testing.assert_array_equal(again.gates, GATES)
    assert again.router == heads.router
    assert json.loads((tmp_path / "same" / "config.json").read_text()) == {"sink_size": 128, "recent_size": 384}

    settled = Heads(np.array([[5, 0], [1, 2], [3, 4]]), heads.router, gates=GATES)  # elimination found another order
    save_duo_attention(settled, tmp_path / "settled")
    again = load_heads(tmp_path / "settled")
    np.testing.assert_array_equal(again.order, settled.order)
    assert 0 < again.gates.min() < again.gates.max() == 1


def test_other_sparse_heads_are_refused(tmp_path):
    heads = Heads(np.arange(4).reshape(2, 2), RouterConfig(pattern="fa-xa"))
    with pytest.raises(ConfigError, match="no heads of pattern 'fa-xa'"):
        save_duo_attention(heads, tmp_path / "duo")


@pytest.mark.parametrize("text", ["", "1\t2\n3\n", "1\tx\n", "1\tnan\n", "\x00\xff"])
def test_what_is_no_table_is_refused(table, text):
    table.write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"no table of gates"):
        load_heads(table)


@pytest.mark.parametrize("size", [0, -1, 1.5, "128", 2**40])
def test_sizes_that_cannot_be_meant_are_refused(table, size):
    (table.parent / "config.json").write_text(json.dumps({"recent_size": size}))
    with pytest.raises(CheckpointError, match="recent_size is"):
        load_heads(table)

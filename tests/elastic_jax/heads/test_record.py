"""Calibrated heads: the cut at an MSR, and their two files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import edit_json
from safetensors.numpy import load_file, save_file

from elastic_jax import Heads, RouterConfig, load_heads
from elastic_jax.errors import CheckpointError, ConfigError, ShapeError
from elastic_jax.heads import CurvePoint

ORDER = np.array([[2, 0, 5], [1, 4, 3]], np.int32)


def heads(**changes) -> Heads:
    made = Heads(
        ORDER,
        RouterConfig(local_blocks=2),
        gates=(1 - ORDER / 6).astype(np.float32),
        curve=(CurvePoint(6, 0.0, 0.0), CurvePoint(2, 4 / 6, 0.02)),
        weights="ab" * 32,
        settings={"steps": 100},
    )
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize(
    "size, msr, sparse",
    [(90, 0.8, 72), (100, 0.55, 55), (90, 0.7, 63), (90, float(np.float32(68 / 90)), 68), (6, 0.5, 3), (6, 0.51, 4)]
    + [(6, 0, 0), (6, 1.0, 6)],
)
def test_the_cut_takes_the_fewest_sparse_heads_that_reach_the_msr(size, msr, sparse):
    order = np.random.default_rng(0).permutation(size).reshape(2, -1)
    modes = Heads(order, RouterConfig()).modes(msr)
    assert modes.dtype == np.int8
    np.testing.assert_array_equal(modes, order >= size - sparse)
    np.testing.assert_array_equal(Heads(order, RouterConfig()).at(msr).modes(), modes)


def test_round_trip(tmp_path):
    for name, made in {"all": heads(), "few": Heads(ORDER, RouterConfig(pattern="fa-xa"), msr=0.5)}.items():
        made.save(tmp_path / name)
        read = load_heads(tmp_path / name)
        np.testing.assert_array_equal(read.order, made.order)
        assert (read.gates is None) == (made.gates is None)
        if made.gates is not None:
            np.testing.assert_array_equal(read.gates, made.gates)
        for field in ("router", "msr", "curve", "weights", "settings"):
            assert getattr(read, field) == getattr(made, field)
    assert load_heads(str(tmp_path / "all" / "heads.safetensors")).settings == {"steps": 100}


def test_overwrites_heads_only(tmp_path):
    heads().save(tmp_path / "heads")
    with pytest.raises(CheckpointError, match="not empty"):
        heads().save(tmp_path / "heads")
    (tmp_path / "heads" / "notes.txt").write_text("mine")
    heads(gates=None, msr=0.5).save(tmp_path / "heads", overwrite=True)
    assert load_heads(tmp_path / "heads").msr == 0.5 and (tmp_path / "heads" / "notes.txt").read_text() == "mine"
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="neither heads nor a model, but a.txt"):
        heads().save(tmp_path / "letters", overwrite=True)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"order": ORDER[0]}, ShapeError, "want .layers, KV heads"),
        ({"order": ORDER + 1}, ShapeError, "each number from 0 to 5 once"),
        ({"order": ORDER.astype(np.float32)}, ShapeError, "order holds float32; want int32"),
        ({"gates": np.ones((3, 2), np.float32)}, ShapeError, "of shape .2, 3"),
        ({"gates": np.full((2, 3), np.nan)}, ShapeError, "finite"),
        ({"msr": 1.01}, ConfigError, "msr is 1.01"),
        ({"msr": float("nan")}, ConfigError, "msr is nan"),
        ({"curve": (CurvePoint(7, 0.5, 0.1),)}, ConfigError, "0 to 6 full heads"),
        ({"weights": "abc"}, ConfigError, "SHA-256"),
        ({"settings": {"file": Path("x")}}, ConfigError, "no JSON"),
    ],
)
def test_what_is_no_choice_of_heads_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        heads(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"version": 2}, "version 2; want 'elastic-jax-heads' version 1"),
        ({"colour": 1}, r"unknown fields \['colour'\]"),
        ({"shape": [2, 10**9]}, "KV heads is 1000000000; want a whole number from 1"),
        ({"shape": [3, 2]}, r"holds gates as F32 \[2, 3\]; want F32 \[3, 2\]|holds order as I32 \[2, 3\]"),
        ({"router": {"colour": 1}}, "unknown router fields"),
        ({"msr": "0.8"}, "msr is '0.8'"),
        ({"curve": [[1, 0.5, 0.1]]}, "want objects of the numbers full_heads, msr, kl"),
        ({"weights": 5}, "weights is 5"),
        ({"settings": []}, "want an object"),
    ],
)
def test_an_edited_configuration_is_refused(tmp_path, changes, message):
    heads().save(tmp_path / "heads")
    edit_json(tmp_path / "heads" / "heads_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        load_heads(tmp_path / "heads")


def test_damaged_arrays_are_refused(tmp_path):
    heads().save(tmp_path / "heads")
    file = tmp_path / "heads" / "heads.safetensors"
    arrays = load_file(file)
    for changed, message in [
        ({"gates": arrays["gates"]}, "want order and perhaps gates"),
        (arrays | {"extra": ORDER}, "want order and perhaps gates"),
        ({"order": ORDER.astype(np.int64)}, "order as I64"),
        ({"order": np.zeros_like(ORDER)}, "order is no ranking"),
    ]:
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=message):
            load_heads(tmp_path / "heads")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_heads(tmp_path / "heads")
    file.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_heads(tmp_path / "heads")
    with pytest.raises(CheckpointError, match="nowhere' holds no calibrated heads"):
        load_heads(tmp_path / "nowhere")


def test_a_file_says_what_it_is(tmp_path):
    heads().save(tmp_path / "heads")
    raw = json.loads((tmp_path / "heads" / "heads_config.json").read_text())
    assert raw["shape"] == [2, 3] and raw["curve"][1] == {"full_heads": 2, "msr": 4 / 6, "kl": 0.02}

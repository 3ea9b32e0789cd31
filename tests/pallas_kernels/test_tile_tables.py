"""A damaged table and an unknown chip cost tuning, never a run."""

import json
import logging

import jax
import pytest

from pallas_kernels import tile_tables
from pallas_kernels.gpu import tuning
from pallas_kernels.gpu.tuning import Tile, choose_tile
from pallas_kernels.tpu import limits

SOUND = {"forward": {"128": vars(Tile(64, 32, 4, 2))}}
SIZES = (128, 128, 128)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Tables of a folder of its own, nothing read or said before."""
    monkeypatch.setattr(tile_tables.resources, "files", lambda package: tmp_path)
    (tmp_path / "tile_tables").mkdir()
    for cached in (tuning.table, limits.table, tile_tables.warn_of_unknown_chip):
        cached.cache_clear()
    yield
    for cached in (tuning.table, limits.table, tile_tables.warn_of_unknown_chip):
        cached.cache_clear()


def test_a_sound_table_is_followed(tmp_path):
    (tmp_path / "tile_tables" / "sm_90.json").write_text(json.dumps(SOUND))
    assert choose_tile("forward", 90, 128, 2, 128) == Tile(64, 32, 4, 2)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"forward": 3}',
        '{"forward": {"128": 8}}',
        json.dumps(SOUND).replace("64", "-64"),
        json.dumps(SOUND).replace('"warps"', '"wraps"'),
        "[" * 100_000,
        "\xff",
    ],
)
def test_a_damaged_gpu_table_gives_the_rule_of_thumb_and_one_warning(text, tmp_path, caplog):
    wanted = choose_tile("forward", 90, 128, 2, 128)
    tuning.table.cache_clear()
    (tmp_path / "tile_tables" / "sm_90.json").write_bytes(text.encode("latin-1"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert choose_tile("forward", 90, 128, 2, 128) == wanted
    assert len(caplog.records) == 1 and "sm_90.json is damaged" in caplog.text


@pytest.mark.parametrize("width", ['"8"', "0", "6", "true"])
def test_a_damaged_tpu_table_gives_the_rule_of_thumb_and_one_warning(width, tmp_path, caplog):
    (tmp_path / "tile_tables" / "v6e.json").write_text(f'{{"forward": {{"128": {width}}}}}')
    device = jax.sharding.AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        with caplog.at_level(logging.WARNING):
            widths = {limits.tile_width("forward", *SIZES) for _ in range(3)}
    assert widths == {limits.WIDEST_TILE["forward"]}
    assert len(caplog.records) == 1 and "v6e.json is damaged" in caplog.text


def test_an_unknown_chip_is_said_once(caplog):
    device = jax.sharding.AbstractDevice(device_kind="TPU v99", num_cores=1, platform="tpu")
    with caplog.at_level(logging.WARNING):
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
            assert [limits.tile_width("forward", *SIZES) for _ in range(3)] == [8, 8, 8]
        for _ in range(3):
            choose_tile("forward", 121, 128, 2, 128)
    assert [record.getMessage().partition(" is unknown")[0] for record in caplog.records] == [
        "TPU v99",
        "Compute capability 12.1",
    ]

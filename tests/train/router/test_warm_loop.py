import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from tiny import CONFIG, tiny_model
from train_run import tiny_config, tiny_samples

from train.config import WarmStartConfig
from train.data.packing import RowShape
from train.data.pipeline import make_pipeline
from train.loop.trouble import Interrupted
from train.router.step import fresh_routers, split_params
from train.router.warm_loop import MEASURED_FILE, warm_routers
from train.router.warm_start import make_logits

CONFIGURED = replace(tiny_config(), warm_start=WarmStartConfig(rows=(3, 6), key_rows=3, steps=3))


def batches(*, kill_after: int | None = None):
    stream = make_pipeline(tiny_samples(), RowShape(128, 16, 3), rows=1, accumulate=2, seed=0)
    for index, batch in enumerate(stream):
        if index == kill_after:
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


def run(directory, **options):
    _, frozen = split_params(tiny_model())
    router = fresh_routers(CONFIG, CONFIGURED.gates, seed=0)
    return warm_routers(router, frozen, CONFIG, CONFIGURED, batches(**options), directory, fingerprint="these samples")


@pytest.mark.parametrize("kill_after, rows", [(1, 3), (3, 7)], ids=["first round", "second round"])
def test_a_stopped_warm_start_goes_on_to_the_last_bit(tmp_path, kill_after, rows):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    wanted = run(whole)
    with pytest.raises(Interrupted, match=f"after {rows} rows.*Run the same command again"):
        run(cut, kill_after=kill_after)
    with safe_open(cut / MEASURED_FILE, "np") as stored:
        before = stored.get_tensor("slope_XLK")
    got = run(cut)
    for path, array in wanted.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)
    with safe_open(whole / MEASURED_FILE, "np") as stored:
        uninterrupted = stored.get_tensor("slope_XLK")
    with safe_open(cut / MEASURED_FILE, "np") as stored:
        after, rounds = stored.get_tensor("slope_XLK"), stored.get_tensor("round_X")
    np.testing.assert_array_equal(after[: len(before)], before)
    np.testing.assert_array_equal(after, uninterrupted)
    assert np.abs(before).max() > 0 and list(dict.fromkeys(rounds.tolist())) == [0, -1, 1]


def test_measurements_of_other_data_and_broken_files_are_not_used(tmp_path):
    (tmp_path / MEASURED_FILE).write_bytes(b"not safetensors")
    routers = run(tmp_path)
    fresh = fresh_routers(CONFIG, CONFIGURED.gates, seed=0)
    assert any(not np.array_equal(routers[path], fresh[path]) for path in fresh)


def test_with_calibrated_heads_only_keys_are_read_and_routers_decide_as_they_do(tmp_path):
    wanted = np.zeros((5, 2, 2), np.float32)
    wanted[:, 0, 1] = 1.0
    settings = WarmStartConfig(key_rows=4, steps=200, learning_rate=1e-2)
    config = replace(tiny_config(), init_heads="heads", warm_start=settings)
    _, frozen = split_params(tiny_model())
    router = fresh_routers(CONFIG, replace(config.gates, first_weights="scaled"), seed=0)
    routers = warm_routers(
        router, frozen, CONFIG, config, batches(), tmp_path, fingerprint="these samples", wanted_tLK=wanted
    )
    with safe_open(tmp_path / MEASURED_FILE, "np") as stored:
        pooled, rounds = stored.get_tensor("pooled_XLKH"), stored.get_tensor("round_X")
        assert stored.metadata()["rows"] == "4" and (rounds == -1).all()
    logits = make_logits(CONFIG)(routers, pooled)
    full_LXK = np.asarray(logits[..., 1] > logits[..., 0])
    assert (full_LXK == (wanted[0] > 0)[:, None]).mean() > 0.95

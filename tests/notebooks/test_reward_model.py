"""The fifth notebook trains, measures and scores."""

import math

from notebook_runs import run_notebook

SIZE = """
PAIRS = 4
HELD_OUT = 4
STEPS = 2
ROWS = 2
LENGTHS = [2]
"""


def test_reward_model(tmp_path):
    run = run_notebook(
        "05_reward_model",
        tmp_path,
        size=SIZE,
        facts={
            "codes": "[data_code, train_code]",
            "held_out": "held_out",
            "losses": "[line['loss'] for line in metrics]",
            "scores": "scores.tolist()",
        },
    )
    assert run.facts["codes"] == [0, 0]
    assert abs(run.facts["losses"][0] - math.log(2)) < 0.1  # a new head knows nothing
    held_out = run.facts["held_out"]
    assert all(0 <= held_out[when]["accuracy"] <= 1 for when in ("before", "after"))
    assert held_out["after"]["loss"] != held_out["before"]["loss"]
    better, worse = run.facts["scores"]
    assert better != worse
    assert run.pictures == 2

"""A run of the second notebook stops, goes on without a gap, and leaves routers that load."""

from notebook_runs import run_notebook

SIZE = """
RECORDS = 4
RECORD_TOKENS = 512
ROW_TOKENS = 512
STEPS = 6
STOP_AFTER = 1
"""


def test_train_a_router(tmp_path):
    run = run_notebook(
        "02_train_a_router",
        tmp_path,
        size=SIZE,
        facts={
            "codes": "[code_of_dry_run, code_of_first_run, code_of_second_run]",
            "stopped_after": "stopped_after",
            "steps": "steps",
            "msr": "[prompt.msr for prompt in routed]",
            "logit_moved": "bool((routed[0].probability_LK != routed[1].probability_LK).any())",
            "msr_again": "routed_again.msr",
        },
    )
    assert run.facts["codes"] == [0, 130, 0]
    assert 1 <= run.facts["stopped_after"] < 6
    assert run.facts["steps"] == [1, 2, 3, 4, 5, 6]
    assert run.facts["logit_moved"]
    assert run.facts["msr_again"] == run.facts["msr"][1]
    assert run.pictures == 2
    assert (tmp_path / "runs/notebooks/router/run/router/router.safetensors").is_file()
    assert "8 samples" in run.text  # the dry run's count

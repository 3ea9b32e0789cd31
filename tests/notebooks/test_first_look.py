"""Routing, answers and the slider of the first notebook."""

from notebook_runs import run_notebook

SIZE = """
PROMPT_TOKENS = 768
ANSWER_TOKENS = 6
BIASES = [-4, 0, 4]
"""


def test_first_look(tmp_path):
    run = run_notebook(
        "01_first_look",
        tmp_path,
        size=SIZE,
        facts={
            "msr": "[prompt.msr for prompt in routed]",
            "answers": "answers",
            "sparsity": "{label: list(shares) for label, shares in sparsity.items()}",
            "losses": "losses",
        },
    )
    msr, answers = run.facts["msr"], run.facts["answers"]
    assert all(0 < share < 1 for share in msr) and len(set(msr)) == 3
    assert [share for _, share in answers.values()] == [0, msr[0], 1]
    for shares in run.facts["sparsity"].values():
        assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    for rises in run.facts["losses"].values():
        assert rises[0] > rises[-1]  # sparser predicts worse
    assert run.pictures == 2
    assert "versions" in run.text  # the doctor's report

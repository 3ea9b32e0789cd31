"""Every tensor of the fourth notebook comes back, those of a checkpoint of the user's too."""

from importlib.util import find_spec

from notebook_runs import ROOT, run_notebook

SIZE = f"HUB_MODEL = {str(ROOT / 'tests' / 'golden' / 'qwen2')!r}"


def test_to_hugging_face_and_back(tmp_path):
    run = run_notebook(
        "04_to_hugging_face_and_back", tmp_path, size=SIZE, facts={"trips": "[*map(list, round_trips.values())]"}
    )
    assert len(run.facts["trips"]) == (5 if find_spec("torch") else 4)
    for same, total in run.facts["trips"]:
        assert same == total > 10
    assert find_spec("torch") or "skipped" in run.text
    assert run.pictures == 1

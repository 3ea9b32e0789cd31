import json
import sys

import pytest
from torch_stand_in import half_a_second

import eval.bench.kernel
from elastic_jax.cli import main as elastic_jax_cli
from eval.bench.work import MODELS, hybrid_flops, routed_flops, selection_flops

SMALL = ["--lengths", "200", "--rounds", "2", "--sparse", "0.5"]
FORWARD = [*SMALL, "--rounds", "1", "--steps", "forward", "--ops", "hybrid"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run with everything, on CPU."""
    folder = tmp_path_factory.mktemp("bench")
    flags = ["--torch-python", half_a_second(folder), "--out", str(folder / "k.json"), "--plot", str(folder / "k.png")]
    assert elastic_jax_cli(["bench", "kernel", *SMALL, *flags]) == 0
    return json.loads((folder / "k.json").read_text()), (folder / "k.png").read_bytes()


def test_every_op_and_every_rival_is_in_the_table(run):
    report, picture = run
    assert (report["model"], report["dtype"], report["failed"]) == ("smollm2-135m", "float32", [])
    assert picture.startswith(b"\x89PNG")
    rows = [(row["op"], row["implementation"], row["step"], row["msr"]) for row in report["speeds"]]
    assert sorted(rows, key=str) == sorted(
        [
            *(
                ("dense", name, step, None)
                for name in ("jax.nn, XLA", "torch SDPA")
                for step in ("forward", "training")
            ),
            *(("hybrid", "auto", step, msr) for step in ("forward", "training") for msr in (0.0, 2 / 3)),
            *(("routed", "auto", "training", msr) for msr in (0.0, 2 / 3)),
            ("select_blocks", "auto", "forward", 2 / 3),
        ],
        key=str,
    )


def test_figures_follow_from_the_times(run):
    shape = MODELS["smollm2-135m"]
    speeds = run[0]["speeds"]
    for row in speeds:
        training = row["step"] == "training"
        full = next(r for r in speeds if (r["op"], r["step"], r["msr"]) == ("hybrid", row["step"], 0.0))
        rivals = [r["seconds"] for r in speeds if (r["op"], r["step"]) == ("dense", row["step"])]
        work = {
            "hybrid": hybrid_flops(shape, 200, round(3 * (row["msr"] or 0)), training=training),
            "dense": hybrid_flops(shape, 200, 0, training=training),
            "routed": routed_flops(shape, 200, round(3 * (row["msr"] or 0))),
            "select_blocks": selection_flops(shape, 200, 2),
        }
        assert len(row["samples"]) == 2 and row["seconds"] == min(row["samples"]) > 0
        assert row["tflops"] == pytest.approx(work[row["op"]] / row["seconds"] / 1e12)
        assert row["against_dense"] == pytest.approx(min(rivals) / row["seconds"])
        if row["op"] == "dense":
            assert row["of_ideal"] is None
        else:
            ideal = full["seconds"] * work[row["op"]] / work["dense"]
            assert row["of_ideal"] == pytest.approx(ideal / row["seconds"])


def test_what_does_not_fit_is_refused_with_numbers(monkeypatch, capsys):
    monkeypatch.setattr(eval.bench.kernel, "free_bytes", lambda: 2**20)
    assert elastic_jax_cli(["bench", "kernel", *FORWARD]) == 2
    error = capsys.readouterr().err
    assert "0.0 GiB of memory are free, but hybrid (auto, forward) at 200 tokens needs" in error
    assert "shorter --lengths" in error


def test_a_rival_that_does_not_fit_is_left_out(monkeypatch, capsys, tmp_path):
    """The scores of dense attention alone, 9 x 1,000 x 1,000 numbers, are more than all that ours needs."""
    monkeypatch.setattr(eval.bench.kernel, "free_bytes", lambda: 4 * 9 * 1000**2)
    out = tmp_path / "k.json"
    flags = [*FORWARD, "--lengths", "1000", "--out", str(out)]
    assert elastic_jax_cli(["bench", "kernel", *flags]) == 0
    assert "left out: dense (jax.nn, XLA, forward) at 1,000 tokens needs" in " ".join(capsys.readouterr().out.split())
    assert all(row["op"] == "hybrid" and row["against_dense"] is None for row in json.loads(out.read_text())["speeds"])


def test_a_python_without_torch_is_left_out(capsys):
    assert elastic_jax_cli(["bench", "kernel", *FORWARD, "--torch-python", sys.executable]) == 0
    assert "left out: dense (torch SDPA, forward) at 200 tokens: torch failed" in capsys.readouterr().out


def test_an_implementation_for_another_device_is_a_clear_error(capsys):
    assert elastic_jax_cli(["bench", "kernel", *FORWARD, "--impls", "triton"]) == 2
    assert "need an NVIDIA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--lengths", "300000"], "want 1 to 262,144 tokens"),
        (["--sparse", "1.5"], "want shares between 0 and 1"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_impossible_settings_are_refused(flags, words, capsys):
    assert elastic_jax_cli(["bench", "kernel", *flags]) == 2
    assert words in capsys.readouterr().err

import json

from tiny import HEADS, tiny_model

from elastic_jax.cli import main as elastic_jax_cli
from eval.bench.prefill import TORCH, ModelSpeed, model_table
from eval.harness.timing import prefill_seconds


def test_bench_prefill_times_every_routing_in_every_dtype(checkpoint, tmp_path, capsys):
    out = tmp_path / "deep" / "speed.json"
    HEADS.save(tmp_path / "heads")
    flags = ["--model", str(checkpoint), "--lengths", "200", "--out", str(out), "--heads", str(tmp_path / "heads")]
    assert elastic_jax_cli(["bench", "prefill", *flags]) == 0
    rows = json.loads(out.read_text())["model"]
    assert {(row["program"], row["dtype"]) for row in rows} == {
        (f"elastic-jax, {name}", dtype)
        for name in ("full", "static heads", "elastic")
        for dtype in ("float32", "bfloat16")
    }
    assert len(rows) == 6 and all(row["seconds"] > 0 and 190 < row["tokens"] <= 200 for row in rows)
    assert "tokens/s" in capsys.readouterr().out


def test_the_table_sets_each_row_against_transformers_of_its_dtype_and_length():
    rows = [("elastic-jax, full", "float32", 100, 2.0), (TORCH, "float32", 100, 3.0), (TORCH, "bfloat16", 100, 9.0)]
    table = model_table([ModelSpeed(*row) for row in [*rows, ("elastic-jax, full", "float32", 7, 1.0)]])
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert ("elastic-jax, full", "float32", "100", "2.00", "50", "1.50") in cells
    assert ("elastic-jax, full", "float32", "7", "1.00", "7", "–") in cells


def test_only_the_routings_asked_for_are_timed():
    times = prefill_seconds(tiny_model(), [[1, 2, 3]], {"sparse": "sparse", "fixed": HEADS}, tokens=16, repeats=2)
    assert list(times) == ["sparse", "fixed"] and min(times.values()) > 0

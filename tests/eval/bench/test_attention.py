import json

from torch_stand_in import half_a_second

from elastic_jax.cli import main as elastic_jax_cli

SMALL = ["--tokens", "300", "--sparse-tokens", "300", "--rounds", "1", "--query-heads", "2", "--kv-heads", "1"]


def test_bench_attention_reports_each_comparison(tmp_path, capsys):
    out = tmp_path / "speed.json"
    flags = [*SMALL, "--torch-python", half_a_second(tmp_path), "--out", str(out)]
    assert elastic_jax_cli(["bench", "attention", *flags]) == 0
    speeds = json.loads(out.read_text())
    assert [speed["tokens"] for speed in speeds] == [300] * 3
    assert speeds[0]["baseline_seconds"] == 0.5
    assert "of the 1.00x that the skipped work allows" in capsys.readouterr().out

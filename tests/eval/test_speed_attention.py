import json
import stat
import sys
from itertools import product

import pytest

from elastic_jax.cli import main as elastic_jax_cli
from eval.speed_attention import kept_share

SMALL = ["--tokens", "300", "--sparse-tokens", "300", "--rounds", "1", "--query-heads", "2", "--kv-heads", "1"]


@pytest.mark.parametrize("tokens", [1, 128, 2176, 2177, 2500])
def test_kept_share_counts_the_pairs_of_the_published_mask(tokens):
    queries = range(tokens) if tokens < 2177 else range(2176, tokens)
    skipped = sum(k // 128 >= 1 and k // 128 <= q // 128 - 16 for q, k in product(queries, range(tokens)) if k <= q)
    assert kept_share(tokens) == pytest.approx(1 - skipped / (tokens * (tokens + 1) / 2))


def test_bench_attention_reports_each_comparison(tmp_path, capsys):
    torch = tmp_path / "python"
    torch.write_text(f"#!{sys.executable}\nprint('ready', flush=True)\nfor _ in open(0): print(0.5, flush=True)\n")
    torch.chmod(torch.stat().st_mode | stat.S_IXUSR)
    out = tmp_path / "speed.json"
    flags = [*SMALL, "--torch-python", str(torch), "--out", str(out)]
    assert elastic_jax_cli(["bench", "attention", *flags]) == 0
    speeds = json.loads(out.read_text())
    assert [speed["tokens"] for speed in speeds] == [300] * 3
    assert speeds[0]["baseline_seconds"] == 0.5
    assert "of the 1.00x that the skipped work allows" in capsys.readouterr().out


def test_a_python_without_torch_is_a_clear_error(capsys):
    assert elastic_jax_cli(["bench", "attention", *SMALL, "--torch-python", sys.executable]) == 2
    assert "torch" in capsys.readouterr().err

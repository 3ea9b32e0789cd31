import dataclasses
import json
from pathlib import Path

import pytest
from tiny import CONFIG, HEADS, tiny_model

from elastic_jax import from_pretrained, save_pretrained
from elastic_jax.cli import main as elastic_jax_cli
from elastic_jax.errors import DataError
from elastic_jax.model import from_params, to_params
from eval.harness.provenance import backbone_digest, router_digest
from eval.harness.scoring import Scorer
from eval.suites.router.run import run_router_report
from eval.suites.router.settings import RouterReportSettings


def settings_for(checkpoint: Path, **changes) -> RouterReportSettings:
    settings = RouterReportSettings(
        model=str(checkpoint),
        dtype="float32",
        lengths=(320, 448),
        probes=3,
        windows=2,
        scored_tokens=16,
        batch_tokens=900,
    )
    return dataclasses.replace(settings, **changes)


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report")
    run_router_report(settings_for(checkpoint), out)
    return out


def test_a_report_has_every_task_length_and_view_and_its_files(finished):
    report = json.loads((finished / "results.json").read_text())
    retrieval = {(row["task"], row["length"], row["view"]): row for row in report["retrieval"]}
    assert len(retrieval) == 4 * 2 * 3
    assert retrieval["kv", 320, "full"]["n"] == 3 and retrieval["all", 320, "full"]["n"] == 9
    assert all(row["interval"][0] <= row["accuracy"] <= row["interval"][1] for row in report["retrieval"])
    assert all(row["msr"] == {"full": 0, "sparse": 1}.get(row["view"], row["msr"]) for row in report["retrieval"])
    assert {(row["task"], row["n"]) for row in report["loss"]} == {("prose", 2), ("code", 2)}
    assert all(row["rise"] == 0 for row in report["loss"] if row["view"] == "full")
    assert set(report["prefill"]) == {"320", "448"}
    assert report["headline"]["length"] == 448

    markdown = (finished / "results.md").read_text()
    for words in (
        "| key-value | 320 | 3 |",
        "| code | 448 |",
        "At 448 tokens",
        "prefill takes",
        "--lengths 320 448 --probes 3",
    ):
        assert words in markdown
    assert (finished / "results.png").read_bytes().startswith(b"\x89PNG")


def test_another_router_reuses_the_baselines_only(finished, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "journal.jsonl").write_bytes((finished / "journal.jsonl").read_bytes())
    model = from_pretrained(checkpoint, dtype="float32")
    params = {path: -x if "router.head.fc3" in path else x for path, x in to_params(model).items()}
    save_pretrained(from_params(model.config, params), tmp_path / "router", format="router")
    scored, score = [], Scorer.score
    monkeypatch.setattr(
        Scorer, "score", lambda self, s, arm, **shape: scored.append(arm.view) or score(self, s, arm, **shape)
    )
    run_router_report(settings_for(checkpoint, router=str(tmp_path / "router")), tmp_path)
    assert set(scored) == {"elastic"}


def test_calibrated_heads_are_a_fourth_way(finished, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "journal.jsonl").write_bytes((finished / "journal.jsonl").read_bytes())
    HEADS.save(tmp_path / "heads")
    scored, score = [], Scorer.score
    monkeypatch.setattr(
        Scorer, "score", lambda self, s, arm, **shape: scored.append(arm.name) or score(self, s, arm, **shape)
    )
    report = run_router_report(settings_for(checkpoint, heads=str(tmp_path / "heads")), tmp_path)
    assert set(scored) == {"heads"}, "the others come from the journal"
    cells = {(row.task, row.length, row.view): row for row in [*report.retrieval, *report.loss]}
    assert len(cells) == (4 + 2) * 2 * 4
    assert all(row.msr == 0.5 for row in cells.values() if row.view == "heads")
    assert report.headline.heads_msr == 0.5 and set(report.prefill["320"]) == {"full", "sparse", "elastic", "heads"}
    page = (tmp_path / "results.md").read_text()
    assert (
        "| perplexity, static heads |" in page and "share, static heads |" in page and "static heads / full |" in page
    )


def test_other_settings_are_refused(finished, checkpoint):
    for changes, message in (
        ({"scored_tokens": 17}, "scored_tokens: the journal has 16, this run 17"),
        ({"seed": 1}, "first_samples: "),
        ({"local_blocks": 3}, "blocks: the journal has .1, 2, 16., this run .1, 3, 16."),
        ({"lengths": (320,)}, "lengths: "),
    ):
        with pytest.raises(DataError, match=message):
            run_router_report(settings_for(checkpoint, **changes), finished)


def test_fewer_samples_come_from_the_same_journal(finished, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "journal.jsonl").write_bytes((finished / "journal.jsonl").read_bytes())
    monkeypatch.setattr(Scorer, "score", lambda *_, **__: pytest.fail("scored again"))
    fewer = run_router_report(settings_for(checkpoint, limit=1), tmp_path)
    assert {row.n for row in fewer.retrieval} == {1, 3}
    assert (tmp_path / "journal.jsonl").read_bytes() == (finished / "journal.jsonl").read_bytes()
    assert (
        fewer.settings["first_samples"]
        == json.loads((finished / "results.json").read_text())["settings"]["first_samples"]
    )


def test_digests_tell_routers_and_backbones_apart():
    model = tiny_model()
    for changed, moved in (("layers.router.task.fc1.bias", router_digest), ("norm.scale", backbone_digest)):
        params = {path: x + 0.5 if path == changed else x for path, x in to_params(model).items()}
        other = from_params(model.config, params)
        for digest in (router_digest, backbone_digest):
            assert (digest(model) != digest(other)) == (digest is moved)
    wider = dataclasses.replace(CONFIG, router=dataclasses.replace(CONFIG.router, pool_window=5))
    assert router_digest(from_params(wider, to_params(model))) != router_digest(model)
    assert router_digest(tiny_model()) == router_digest(model)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--out"),
        (["--out", "x", "--scored-tokens", "1024"], "scored_tokens is 1024; want 1 to 1023"),
        (["--out", "x", "--probes", "0"], "probes is 0"),
        (["--out", "x", "--limit", "0"], "limit is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(capsys, flags, message):
    assert elastic_jax_cli(["eval", "router", *flags, "--dry-run"]) != 0
    assert message in capsys.readouterr().err


def test_a_dry_run_prints_the_settings_and_writes_nothing(capsys, tmp_path):
    assert elastic_jax_cli(["eval", "router", "--out", str(tmp_path / "out"), "--lengths", "600", "--dry-run"]) == 0
    assert "- 600" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()

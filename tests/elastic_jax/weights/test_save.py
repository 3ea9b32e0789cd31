"""Writing never loses or half-writes anything."""

import errno
import json
from pathlib import Path

import pytest
import safetensors.numpy
from checkpoints import GOLDEN, WEIGHTS, same_bits
from safetensors.numpy import load_file

from elastic_jax import files
from elastic_jax.errors import CheckpointError, ConfigError
from elastic_jax.files import atomic_directory, atomic_file
from elastic_jax.model import ElasticForCausalLM
from elastic_jax.weights import from_pretrained, save_pretrained


@pytest.fixture(scope="module")
def model() -> ElasticForCausalLM:
    return from_pretrained(GOLDEN / "llama3")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_target_that_is_not_empty_is_refused(model: ElasticForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not empty.*overwrite=True"):
        save_pretrained(model, tmp_path / "out")
    assert contents(tmp_path) == {"out/notes.txt": b"mine"}
    with pytest.raises(CheckpointError, match="is a file"):
        save_pretrained(model, tmp_path / "out" / "notes.txt")


def test_overwrite_replaces_a_checkpoint_and_nothing_else(model: ElasticForCausalLM, tmp_path: Path) -> None:
    out, others = tmp_path / "out", {"README.md": b"about", "thesis/data.txt": b"years"}
    save_pretrained(model, out, max_shard_bytes=30_000)
    (out / "thesis").mkdir()
    for name, content in others.items():
        (out / name).write_bytes(content)
    (out / "README.md").chmod(0o700)
    (out / "link").symlink_to("README.md")
    model.fresh_routers = False  # only trained routers can be written alone
    inode = (out / "README.md").stat().st_ino
    save_pretrained(model, out, format="router", overwrite=True)
    assert contents(out).keys() == {*others, "link", "router.safetensors", "router_config.json"}
    assert contents(out).items() >= others.items() and (out / "README.md").stat().st_ino == inode
    assert (out / "README.md").stat().st_mode & 0o777 == 0o700
    assert (out / "link").is_symlink() and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("files", [["notes.txt"], ["config.json"], ["model.safetensors"], ["thesis/data.txt"]])
def test_overwrite_refuses_what_is_no_checkpoint(model: ElasticForCausalLM, tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        save_pretrained(model, tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before


def test_an_empty_or_new_target_is_filled(model: ElasticForCausalLM, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_pretrained(model, tmp_path / "empty")
    save_pretrained(model, tmp_path / "new" / "deep")
    assert contents(tmp_path / "empty") == contents(tmp_path / "new" / "deep")


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), CheckpointError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_failed_write_leaves_the_target_as_it_was(
    failure: BaseException,
    raised: type[BaseException],
    model: ElasticForCausalLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_pretrained(model, tmp_path / "out")
    before = contents(tmp_path)

    def fail(tensors: dict, file: Path, **_: object) -> None:
        file.write_bytes(b"half")
        raise failure

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(raised):
        save_pretrained(model, tmp_path / "out", overwrite=True)
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_swap_restores_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("interrupted")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)  # a system that cannot do it in one step
    with pytest.raises(CheckpointError, match="interrupted"), atomic_directory(tmp_path / "out", replaces=["*"]) as p:
        (p / "new.txt").write_text("new")
    assert contents(tmp_path) == {"out/notes.txt": b"mine"}


def test_files_are_as_readable_as_their_directory(model: ElasticForCausalLM, tmp_path: Path) -> None:
    save_pretrained(model, tmp_path / "out")
    modes = {p.stat().st_mode & 0o666 for p in (tmp_path / "out").iterdir()}
    assert modes == {(tmp_path / "out").stat().st_mode & 0o666}


def test_a_lost_source_costs_the_tokenizer_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = from_pretrained(GOLDEN / "llama3")
    model.source = str(tmp_path / "gone")
    save_pretrained(model, tmp_path / "out")
    assert "is gone" in caplog.text


def test_elastic_export_as_hf_keeps_the_backbone_only(tmp_path: Path) -> None:
    official = GOLDEN / "official_qwen3"
    save_pretrained(from_pretrained(official, dtype="auto"), tmp_path / "out")
    written = load_file(tmp_path / "out" / WEIGHTS)
    backbone = {k: v for k, v in load_file(official / WEIGHTS).items() if "mask" not in k and "sparsity" not in k}
    assert same_bits(written, backbone)
    assert "toggle_type" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_unknown_format(model: ElasticForCausalLM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'torch'; want hf, elastic or router"):
        save_pretrained(model, tmp_path / "out", format="torch")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError) as caught, atomic_file(tmp_path / "results.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "results.json")
    assert not any(tmp_path.iterdir())

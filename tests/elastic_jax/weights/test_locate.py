"""Hub ids resolve through the local cache, whose files are links."""

from pathlib import Path

import huggingface_hub.constants
import pytest
from checkpoints import GOLDEN

from elastic_jax.errors import CheckpointError
from elastic_jax.weights import from_pretrained
from elastic_jax.weights.locate import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds owner/name, laid out as huggingface_hub does."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for name in ("config.json", "model.safetensors"):
        (repository / "blobs" / name).write_bytes((GOLDEN / "llama3" / name).read_bytes())
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return snapshot


def test_hub_id_from_the_cache(cached: Path) -> None:
    assert locate("owner/name") == cached
    assert locate("owner/name@main") == cached
    model = from_pretrained("owner/name")
    assert model.source == str(cached)


def test_unknown_revision(cached: Path) -> None:
    with pytest.raises(CheckpointError, match="'owner/name@v2' is no local path"):
        locate("owner/name@v2")


def test_a_directory_wins_over_a_hub_id(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name") == Path("owner/name")

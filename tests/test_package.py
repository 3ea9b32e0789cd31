"""What `pip install` gets: the wheel and the source distribution hold all that the program reads, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pallas_kernels", "elastic_jax", "train", "eval")
PARTS = ("README.md", "LICENSE", "pyproject.toml", "setup.py", "configs", *PACKAGES)
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, folder: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD, f"build_{kind}", str(folder)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because building writes into the source tree."""
    folder = tmp_path_factory.mktemp("sdist")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return build("sdist", folder, folder)


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as a packager would: so that holds enough."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, folder)


def wanted_files() -> set[str]:
    sources = {str(f.relative_to(ROOT)) for package in PACKAGES for f in (ROOT / package).rglob("*.py")}
    data = {str(f.relative_to(ROOT)) for f in (ROOT / "elastic_jax" / "data").rglob("*") if f.is_file()}
    tables = {str(f.relative_to(ROOT)) for f in (ROOT / "pallas_kernels").rglob("tile_tables/*.json")}
    configs = {f"elastic_jax/{f.relative_to(ROOT)}" for f in (ROOT / "configs").rglob("*") if f.is_file()}
    typed = {f"{package}/py.typed" for package in PACKAGES}
    return sources | {name for name in data if "__pycache__" not in name} | tables | configs | typed


def test_the_wheel_holds_every_source_and_data_file_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert names == wanted_files()
    assert licences


def test_the_source_distribution_leaves_out_what_a_build_leaves_behind(sdist: Path):
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert not [name for name in names if "__pycache__" in name or "/build/" in name or "/.venv/" in name]


def test_an_unpacked_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    run = "import elastic_jax, sys; from elastic_jax.cli import main; print(elastic_jax.__file__); sys.exit(main())"
    arguments = ["plan", "--config", "router_qwen3_8b_64k", "--topology", "v6e:8x8", "--json"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", run, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, _, answer = done.stdout.partition("\n")
    assert Path(where).is_relative_to(tmp_path)
    assert json.loads(answer)["fits"]

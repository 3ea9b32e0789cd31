"""Settings of the whole test session; they must be in place before jax is imported."""

import ast
import gc
import os
import sys
from functools import cache
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Most programs of the tests run once, so what counts is how fast they compile: without optimisation, and with the older
# code generators of the CPU, which take a third of the time for the same results.
FAST_COMPILES = "--xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
os.environ.setdefault("XLA_FLAGS", FAST_COMPILES)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Arrays of different dtypes or ranks never meet by accident; programs that the tests start inherit this.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

TESTS = Path(__file__).parent
END_TO_END = ("notebooks/", "train/demo/", "test_docs_run", "test_readme", "test_package")
COMPILES = {"jax", "flax", "subprocess"}
JAX_FIXTURES = {"model", "checkpoint"}
MAPS = Path("/proc/self/maps")
MOST_MAPS = 15_000
"""Memory maps of a worker; Linux ends a process that has 65,530, and every compiled program in memory holds several."""


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE of a few hundred tokens, without a chat template."""
    from tiny_text import tiny_tokenizer

    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model():
    """The tiny model, for tests that change none of it."""
    from tiny import tiny_model  # starts jax, which many tests do without

    return tiny_model()


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tmp_path_factory) -> Path:
    """A tiny model with routers and the tokenizer, as a directory that no test changes."""
    from tiny import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model", tokenizer)


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped():
    """After a file, frees the compiled programs where they have become many; the disk cache has them still."""
    yield
    if "jax" in sys.modules and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        sys.modules["jax"].clear_caches()
        gc.collect()


def pytest_collection_modifyitems(items):
    """Marks the tiers, and puts the end-to-end files first: they take longest, so that no worker is left with one."""
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(END_TO_END):
            item.add_marker("e2e")
        elif not (any(item.iter_markers("slow")) or JAX_FIXTURES & {*item.fixturenames} or compiles(item.path)):
            item.add_marker("unit")
    items.sort(key=lambda item: not any(item.iter_markers("e2e")))


@cache
def compiles(file: Path) -> bool:
    """Whether a test file imports jax, directly or through modules of the house and helpers, or starts a process."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    if any(module.partition(".")[0] in COMPILES for module in modules):
        return True
    paths = [module.replace(".", "/") for module in modules if module]
    files = [TESTS.parent / f"{path}{end}" for path in paths for end in (".py", "/__init__.py")]
    files += [TESTS / "support" / f"{path}.py" for path in paths]
    return any(other != file and other.is_file() and compiles(other) for other in files)

"""Rules that hold for the whole source tree: import direction, light imports, nothing unsafe, no dead settings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "pallas_kernels": set(),
    "elastic_jax": {"pallas_kernels"},
    "train": {"pallas_kernels", "elastic_jax"},
    "eval": {"pallas_kernels", "elastic_jax"},
}
SOURCES = sorted(file for package in MAY_IMPORT for file in (ROOT / package).rglob("*.py"))
HEAVY = "jax flax transformers orbax grain matplotlib tyro torch gguf tensorstore".split()
UNSAFE_IMPORTS = ("pickle", "cloudpickle", "dill", "marshal", "shelve", "torch", "jax._src")
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "torch.load"}
UNSAFE_KEYWORDS = {"trust_remote_code", "allow_pickle", "shell"}
MAX_LINES = 600


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; name the package"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_source_file_keeps_the_rules(file: Path):
    package = file.relative_to(ROOT).parts[0]
    tree = tree_of(file)
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES

    for module in imported_modules(tree):
        top = module.partition(".")[0]
        assert top not in MAY_IMPORT or top == package or top in MAY_IMPORT[package], f"{package} imports {module}"
        assert not any(module == name or module.startswith(name + ".") for name in UNSAFE_IMPORTS), f"imports {module}"

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) != "jax._src", f"line {node.lineno}: private part of jax"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS, f"line {node.lineno}: {ast.unparse(node.func)}"
            for keyword in node.keywords:
                is_false = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                assert keyword.arg not in UNSAFE_KEYWORDS or is_false, f"line {node.lineno}: {keyword.arg}"


@pytest.mark.parametrize(
    "statement",
    [
        "import elastic_jax; dir(elastic_jax)",
        "from elastic_jax import cli; [entry.load() for entry in cli.find_verbs().values()]",
    ],
)
def test_import_is_light(statement: str):
    """Help, completion and `import elastic_jax` must not wait for jax."""
    probe = f"import sys; {statement}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_every_public_name_resolves():
    import elastic_jax

    for name in elastic_jax.__all__:
        assert getattr(elastic_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="from_pretrain"):
        elastic_jax.from_pretrain  # noqa: B018


def test_every_setting_is_read_somewhere():
    """A field that no code reads is a promise that the program does not keep."""
    trees = [tree_of(file) for file in SOURCES]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    unread = [
        f"{node.name}.{statement.target.id}"
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Settings"))
        if "fields(self)" not in ast.unparse(node)  # reads all of its fields
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if statement.target.id not in read
    ]
    assert unread == []


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.py", "constraints.txt", "Makefile", ".ci/run"])
def test_no_file_names_a_download_address(name: str):
    text = (ROOT / name).read_text(encoding="utf-8")
    for word in ("://", "index-url", "find-links"):
        assert word not in text

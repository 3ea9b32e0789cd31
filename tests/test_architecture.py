"""Rules that hold for the whole source tree: import direction, light imports, nothing unsafe, no dead settings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
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
MAX_LINES = 400


VERBS = ("elastic_jax.cli.", "train.verbs.", "eval.verbs.")
VERB_PARTS = {f"elastic_jax.cli.{name}" for name in ("args", "entry", "examination", "model")}
"""Modules of the command line that are no verbs: what verbs share."""
KERNEL_DOORS = {"pallas_kernels", "pallas_kernels.schedule", "pallas_kernels.dispatch"}
MAX_FILES = {"eval": 6, "elastic_jax": 22, "train": 6}
"""Python files directly in a package."""


def imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; name the package"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(file.read_text("utf-8"))
    for file in SOURCES
}


def test_files_are_short():
    assert [file for file in SOURCES if len(file.read_text(encoding="utf-8").splitlines()) > MAX_LINES] == []


def test_packages_import_in_one_direction_and_nothing_unsafe():
    found = []
    for name, tree in MODULES.items():
        package = name.partition(".")[0]
        for module in imported_modules(tree):
            top = module.partition(".")[0]
            upward = top in MAY_IMPORT and top != package and top not in MAY_IMPORT[package]
            if upward or any(module == unsafe or module.startswith(unsafe + ".") for unsafe in UNSAFE_IMPORTS):
                found.append(f"{name} imports {module}")
    assert not found, "\n".join(found)


def test_nothing_unsafe_is_called():
    found = []
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) == "jax._src":
                found.append(f"{name}, line {node.lineno}: private part of jax")
            if isinstance(node, ast.Call):
                keywords = {keyword.arg for keyword in node.keywords if ast.unparse(keyword.value) != "False"}
                used = ({ast.unparse(node.func)} & UNSAFE_CALLS) | (keywords & UNSAFE_KEYWORDS)
                found += [f"{name}, line {node.lineno}: {word}" for word in used]
    assert not found, "\n".join(found)


def imports_of(name: str) -> Iterator[tuple[str, str]]:
    """(module of the house, name) of everything that a module imports anywhere in it; the name of a module is ''."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = inner in MODULES and alias.name not in exported(node.module or "")
                yield (inner, "") if is_module else (node.module or "", alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


def test_no_import_circle():
    """Lazy imports and imports for type checkers count: a circle is two halves that cannot be read one by one."""
    graph = {name: {module for module, _ in imports_of(name) if module in MODULES} - {name} for name in MODULES}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_nothing_imports_a_verb():
    found = [
        f"{name} imports {module}"
        for name in MODULES
        for module, _ in imports_of(name)
        if module.startswith(VERBS) and module not in VERB_PARTS and name != "elastic_jax.cli"
    ]
    assert not found, "\n".join(found)


def test_settings_lie_beneath_their_implementation():
    """Settings and all that they need come without jax, so that help and dry runs are instant."""
    needed = {name for name in MODULES if name.rpartition(".")[2] in ("settings", "config", "run_config")}
    needed |= {name for name in MODULES if name.startswith("elastic_jax.config")}
    found, waiting = [], sorted(needed)
    while waiting:
        name = waiting.pop()
        for module in set(imported_at_once(MODULES[name])):
            if module.partition(".")[0] in HEAVY:
                found.append(f"{name} imports {module}")
            elif module in MODULES and module not in needed:
                needed.add(module)
                waiting.append(module)
    assert not found, "\n".join(found)


def imported_at_once(tree: ast.Module) -> Iterator[str]:
    """Modules that importing a module imports: not those of its functions, nor those for type checkers."""
    plain = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imported_modules(ast.Module(plain, []))


def test_only_exported_names_cross_packages():
    """Another package may use what a module defines itself, or lists in `__all__`, under a public name."""
    problems = []
    for name in MODULES:
        for module, imported in imports_of(name):
            if module.partition(".")[0] == name.partition(".")[0] or module not in MODULES:
                continue
            if any(part.startswith("_") for part in [*module.split("."), imported] if part):
                problems.append(f"{name} imports {module}.{imported}, a private name")
            elif imported and imported not in exported(module):
                problems.append(f"{name} imports {imported} from {module}, which only imports it")
            if module.startswith("pallas_kernels.") and module not in KERNEL_DOORS:
                problems.append(f"{name} imports {module}, which is inside pallas_kernels")
    assert not problems, "\n".join(problems)


def exported(module: str) -> set[str]:
    names: set[str] = set()
    for node in MODULES[module].body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.TypeAlias):
            names.add(node.name.id)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
            if "__all__" in names and isinstance(node.value, ast.List):
                names |= {entry.value for entry in node.value.elts if isinstance(entry, ast.Constant)}
    return names


def test_packages_keep_few_files_at_their_top():
    counts = {package: len(list((ROOT / package).glob("*.py"))) for package in MAX_FILES}
    assert [package for package, most in MAX_FILES.items() if counts[package] > most] == []


def test_limit_of_lines_is_the_one_in_the_text():
    assert f"{MAX_LINES} lines" in (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "statement",
    [
        "import elastic_jax; dir(elastic_jax)",
        "from elastic_jax.cli import find_verbs; [entry.load() for entry in find_verbs().values()]",
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
    trees = MODULES.values()
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
    assert not unread, "\n".join(unread)


def test_no_file_names_a_download_address():
    files = ("pyproject.toml", "setup.py", "constraints.txt", "Makefile", ".ci/run")
    words = ("://", "index-url", "find-links")
    assert [(file, word) for file in files for word in words if word in (ROOT / file).read_text("utf-8")] == []

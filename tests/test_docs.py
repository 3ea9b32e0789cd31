"""What README and documentation name must exist: commands, flags, settings, files, names, links."""

import ast
import dataclasses
import importlib
import json
import pkgutil
import re
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator

import pytest
import yaml
from doc_pages import (
    AS_IT_IS,
    PAGES,
    ROOT,
    TOY,
    anchors,
    blocks,
    elastic_arguments,
    inline_code,
    links,
    shell_commands,
    text_of,
)

import elastic_jax
import pallas_kernels
from elastic_jax.cli import entry as cli
from elastic_jax.cli.args import parse_verb
from eval.harness.settings import BenchmarkSettings

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [(block.where, words) for block in BLOCKS if block.language in ("sh", "") for words in shell_commands(block)]
INLINE = [(page, code) for page in PAGES for code in inline_code(page)]
NAMED = [(page, code.split()) for page, code in INLINE if re.match(r"(elastic-jax|pytest|make|pip|python) ", code)]
COMMANDS = SHELL + [(page, words) for page, words in NAMED if "VERB" not in words]
VERBS = [(where, arguments) for where, words in COMMANDS for arguments in elastic_arguments(words)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
LANGUAGES = {"sh", "python", "json", "text", ""}
OTHER_PROGRAMS = {"gcloud", "srun", "export", "mkdocs"}
OTHER_FLAGS = {"--signal", "--requeue"}
SCRIPT_FLAGS = {
    flag for file in ROOT.glob("benchmarks/*.py") for flag in re.findall(r'"(--[a-z-]+)"', file.read_text())
}


class Parsed(Exception):
    """A verb has read its arguments and would start to work."""


def replace_parser(patch: pytest.MonkeyPatch, parser: Callable) -> None:
    """Puts `parser` in place of `parse_verb` in every module of the product that has it, verbs and what they share."""
    for entry in cli.find_verbs().values():
        importlib.import_module(entry.module)
    for module in list(sys.modules.values()):
        if getattr(module, "parse_verb", None) is parse_verb and module.__name__ != __name__:
            patch.setattr(module, "parse_verb", parser)


@pytest.fixture
def stop_after_parsing(monkeypatch):
    """Every verb stops when its own parser has taken the command line."""
    with monkeypatch.context() as patch:
        replace_parser(patch, _parse_and_stop)
        yield


def _parse_and_stop(cls, argv, **options):
    raise Parsed(parse_verb(cls, argv, **options))


@pytest.mark.parametrize(("where", "arguments"), VERBS, ids=[f"{where} {' '.join(a[:2])}" for where, a in VERBS])
def test_the_verb_takes_the_command(stop_after_parsing, where: str, arguments: list[str]):
    with pytest.raises((Parsed, SystemExit)) as stop:
        cli.main(arguments)
    assert stop.type is Parsed or stop.value.code == 0, "refused; only --help may stop before"


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[f"{where} {words[0]}" for where, words in COMMANDS])
def test_what_a_command_names_exists(where: str, words: list[str]):
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "pip":
        asked = [extra for word in rest for names in re.findall(r"\[(.+)\]", word) for extra in names.split(",")]
        assert set(asked) <= PROJECT["optional-dependencies"].keys()
    elif program == "python":
        script = ROOT / rest[0]
        flags = {word for word in rest[1:] if word.startswith("--")}
        assert script.is_file() and flags <= set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    elif program == "pytest":
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests"))
    else:
        assert program in OTHER_PROGRAMS or elastic_arguments(words), f"{where}: nobody checks {program}"


SIZES = [
    (verb, sizes.split())
    for page in PAGES
    for verb, sizes in re.findall(r"^\| `((?:eval|bench) [\w-]+)` \| `(--[^`]+)` \|$", text_of(page), re.MULTILINE)
]
"""Rows of the tables that say what a benchmark or measurement does by default."""


@pytest.mark.parametrize(("verb", "sizes"), SIZES, ids=[verb for verb, _ in SIZES])
def test_a_verb_does_by_default_what_the_table_says(stop_after_parsing, verb: str, sizes: list[str]):
    with pytest.raises(Parsed) as stop:
        cli.main([*verb.split(), *sizes])
    given = stop.value.args[0].settings
    assert given == type(given)()
    shared = {field.name for field in dataclasses.fields(BenchmarkSettings)}
    own = {field.name: field.default for field in dataclasses.fields(given) if field.name not in shared}
    numbers = {name for name, value in own.items() if type(value) in (int, float)}
    numbers |= {name for name, value in own.items() if isinstance(value, tuple) and value and type(value[0]) is not str}
    assert {f"--{name.replace('_', '-')}" for name in numbers} <= {*sizes}, "sizes that the table does not name"


def test_every_benchmark_and_measurement_is_in_a_table_of_sizes():
    verbs = {name.replace(".", " ") for name in cli.find_verbs() if name.startswith(("eval.", "bench."))}
    assert sorted(verb for verb, _ in SIZES) == sorted(verbs - {"eval compare"})


def verb_settings() -> list[type]:
    """The settings class of every verb."""

    def show(cls, argv, **options):
        found.append(cls)
        raise Parsed

    found: list[type] = []
    with pytest.MonkeyPatch.context() as patch:
        replace_parser(patch, show)
        for entry in cli.find_verbs().values():
            with pytest.raises(Parsed):
                entry.load()([])
    return found


def fields_of(cls: type, *parents: str) -> Iterator[tuple[str, ...]]:
    """Paths of all settings, those with fields of their own included."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        path = (*parents, item.name)
        yield path
        if dataclasses.is_dataclass(hints[item.name]):
            yield from fields_of(hints[item.name], *path)


@pytest.fixture(scope="module")
def settings() -> set[tuple[str, ...]]:
    return {path for cls in verb_settings() for path in fields_of(cls)}


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_are_flags_of_some_verb(page: str, settings):
    known = SCRIPT_FLAGS | OTHER_FLAGS | {"--help", "--config", "--dry-run", "--debug", "--version"}
    for *parents, last in settings:
        known |= {"--" + ".".join([*parents, last]).replace("_", "-")}
        known |= {"--" + ".".join([*parents, f"no-{last}"]).replace("_", "-")}
    ours = {"elastic-jax", "python", *(name.partition(".")[0] for name in cli.find_verbs())}
    for _, code in [pair for pair in INLINE if pair[0] == page]:
        for flag in re.findall(r"(?<!\S)--[\w.-]*\w", code):
            assert flag in known or code.split()[0] not in ours | {flag}, code


@pytest.mark.parametrize("page", PAGES)
def test_settings_in_the_text_exist(page: str, settings):
    groups = {path[0] for path in settings if len(path) > 1}
    for _, code in [pair for pair in INLINE if pair[0] == page]:
        name = re.match(r"(\w+)\.[\w.]+(?= |$)", code)
        if name and name[1] in groups and not code.endswith((".py", ".png")):
            assert tuple(name[0].replace("TASK", "code").split(".")) in settings, code


@pytest.mark.parametrize("page", PAGES)
def test_files_and_names_in_the_text_exist(page: str):
    for _, code in [pair for pair in INLINE if pair[0] == page]:
        if re.fullmatch(r"(elastic_jax|train|eval|pallas_kernels|benchmarks|configs|tests|docs)/[a-z0-9_./*-]+", code):
            assert list(ROOT.glob(code.rstrip("/"))), code
        elif re.fullmatch(r"(elastic_jax|train|eval|pallas_kernels)(\.\w+)+(\(.*\))?", code) and code != cli.GROUP:
            pkgutil.resolve_name(code.partition("(")[0])


@pytest.mark.parametrize("block", BLOCKS, ids=[block.where for block in BLOCKS])
def test_blocks_are_of_a_kind_that_is_checked(block):
    assert block.language in LANGUAGES and block.mark in ("", TOY, AS_IT_IS)
    if block.language == "json":
        for line in block.text.splitlines():
            json.loads(line)
    elif block.language == "python":
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    pkgutil.resolve_name(f"{node.module}:{alias.name}")
    elif block.language == "text":
        assert "elastic-jax " not in block.text, "a command that nobody checks: make the block sh"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(str(file.resolve().relative_to(ROOT))), target


def test_every_page_is_in_the_navigation_once():
    def pages(entries) -> Iterator[str]:
        for entry in entries:
            for target in entry.values():
                yield from [target] if isinstance(target, str) else pages(target)

    assert sorted(f"docs/{page}" for page in pages(SITE["nav"])) == PAGES[1:]


def test_every_picture_is_shown_somewhere():
    shown = {((ROOT / page).parent / target).resolve() for page in PAGES for target in links(page)}
    assert {picture for picture in ROOT.glob("docs/**/*.png")} <= shown


@pytest.mark.parametrize("package", [elastic_jax, pallas_kernels])
def test_every_public_name_is_on_the_api_page_and_explained(package):
    page = text_of("docs/api.md")
    for name in package.__all__:
        assert f"\n::: {package.__name__}.{name}\n" in page, name
        assert getattr(package, name).__doc__, name
    if package is elastic_jax:
        assert set(re.findall(r"^\| \[`(\w+)`\]", page, re.MULTILINE)) == set(package.__all__)


def test_names_on_the_api_page_exist():
    for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", text_of("docs/api.md"), re.MULTILINE):
        found = pkgutil.resolve_name(name)
        for member in re.findall(r"\w+", (re.findall(r"members: \[(.*)\]", options) or [""])[0]):
            assert getattr(found, member).__doc__, f"{name}.{member}"

"""What README and documentation say can be done: every command is parsed by its verb, and what is quick is run."""

import ast
import dataclasses
import importlib
import json
import re
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from doc_pages import (
    PAGES,
    ROOT,
    TOY,
    Block,
    anchors,
    blocks,
    elastic_arguments,
    inline_code,
    links,
    shell_commands,
    text_of,
)

from elastic_jax import cli
from elastic_jax.cli_args import parse_verb

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language in ("sh", "")]
COMMANDS = [(block.where, words) for block in SHELL for words in shell_commands(block)]
VERBS = [(where, arguments) for where, words in COMMANDS for arguments in elastic_arguments(words)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Parsed(Exception):
    """A verb has read its arguments and would start to work."""


@pytest.fixture
def stop_after_parsing(monkeypatch):
    """Every verb stops when its own parser has taken the command line."""

    def parse_and_stop(cls, argv, **options):
        raise Parsed(parse_verb(cls, argv, **options))

    for entry in cli.find_verbs().values():
        entry.load()
        monkeypatch.setattr(importlib.import_module(entry.module), "parse_verb", parse_and_stop)


@pytest.mark.parametrize(("where", "arguments"), VERBS, ids=[f"{where} {' '.join(a[:2])}" for where, a in VERBS])
def test_the_verb_takes_the_command(stop_after_parsing, where: str, arguments: list[str]):
    with pytest.raises(Parsed):
        assert cli.main(arguments) == 0, f"{where}: refused"
        pytest.skip("answered without settings, as --help and --version do")

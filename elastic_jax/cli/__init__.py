"""The command line: finding a verb, reading its settings, and the verbs of the library itself."""

from elastic_jax.cli.args import parse_verb
from elastic_jax.cli.entry import find_verbs, main

__all__ = ["find_verbs", "main", "parse_verb"]

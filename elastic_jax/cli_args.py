"""Old address of `elastic_jax.cli.parse_verb`, kept for verbs of other packages until the next release."""

from elastic_jax.cli.args import parse_verb

__all__ = ["parse_verb"]

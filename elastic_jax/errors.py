"""Errors that users see: each says what was wrong, what was found, what was wanted and what to do."""


class ElasticError(Exception):
    """Base class of every error raised on purpose by elastic_jax, train and eval."""

    exit_code = 2
    """Exit code of a command that ends with it."""


class ConfigError(ElasticError, ValueError):
    """A configuration value or field that is unknown, contradictory or not supported."""


class ShapeError(ElasticError, ValueError):
    """An array whose shape or length does not fit the call."""


class CheckpointError(ElasticError, ValueError):
    """A checkpoint that cannot be read or written safely."""


class DataError(ElasticError, ValueError):
    """A data record that is malformed or unusable."""


class NumericsError(ElasticError, ArithmeticError):
    """Results that are NaN or infinite."""


class InUseError(ElasticError):
    """A file or directory that another process is writing."""


def shown(value: object) -> str:
    """A value as an error message quotes it: never longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""The `elastic-jax` command: finds the verb among the installed ones and runs it."""

from __future__ import annotations

import difflib
import inspect
import os
import select
import signal
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from elastic_jax.cli.args import EXIT_OK, EXIT_USAGE, FREE_TEXT
from elastic_jax.errors import ElasticError

GROUP = "elastic_jax.verbs"
USAGE = """usage: elastic-jax VERB [options]      elastic-jax VERB --help

Every verb takes --config FILE.yaml, one flag per setting, and --dry-run.
Add --debug anywhere for the full traceback of an error.

verbs:
"""
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_CLOSED_PIPE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb.

    Exit codes: 0 done, 1 failed, 2 wrong usage or input, 3 done but for some prompts or samples, 4 training that learnt
    nothing, 130 and 143 interrupted, 141 nobody reads the output any more.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it recommends torch, which is never used here
    arguments = list(sys.argv[1:] if argv is None else argv)
    pairs = zip(["", *arguments], arguments, strict=False)
    kept = [word for previous, word in pairs if word != "--debug" or previous in FREE_TEXT]
    debug, arguments = len(kept) < len(arguments), kept
    verbs = find_verbs()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE + "\n".join(_summary_lines(verbs)))
        return EXIT_OK if arguments else EXIT_USAGE
    if arguments[0] == "--version":
        print(metadata.version("elastic-jax"))
        return EXIT_OK
    entry, rest = _split(verbs, arguments)
    if entry is None:
        return _unknown_verb(verbs, arguments)
    try:
        code = entry.load()(rest)
        sys.stdout.flush()
        return code
    except (ElasticError, OSError, UnicodeError) as error:
        if debug:
            raise
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return EXIT_CLOSED_PIPE
        print(f"elastic-jax {entry.name.replace('.', ' ')}: {_one_line(error)}", file=sys.stderr)
        return getattr(error, "exit_code", EXIT_USAGE)
    except (RuntimeError, AssertionError):
        if debug or (problem := _missing_device()) is None:
            raise
        print(f"elastic-jax {entry.name.replace('.', ' ')}: {problem}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        if debug:
            raise
        print("Interrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED


def _output_is_closed() -> bool:
    """Whether nobody reads the standard output any more; then what is left of it goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    closed = any(event & select.POLLERR for _, event in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _missing_device() -> str | None:
    """Why JAX has no device at all, as with a wrong JAX_PLATFORMS; None where it has one or was not needed."""
    if (jax := sys.modules.get("jax")) is None:
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"JAX has no device with JAX_PLATFORMS={platforms!r}. Unset it, or install what JAX needs there. "
            f"{' '.join(str(error).split())}"
        ).strip()
    return None


def _one_line(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        character = error.object[error.start].encode("unicode_escape").decode()
        return (
            f"the output has the character {character}, which its encoding {error.encoding} lacks. Set PYTHONIOENCODING"
            "=utf-8."
        )
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        places = " -> ".join(str(place) for place in (error.filename, error.filename2) if place is not None)
        return f"{places}: {error.strerror}."
    return str(error) if isinstance(error, ElasticError) else f"{type(error).__name__}: {' '.join(str(error).split())}"


def find_verbs() -> dict[str, metadata.EntryPoint]:
    """Verbs by dotted name: those of a source tree beside this package, and of every installed distribution."""
    source = Path(__file__).parents[2] / "pyproject.toml"
    declared: dict[str, str] = {}
    if source.is_file():
        declared = tomllib.loads(source.read_text(encoding="utf-8"))["project"]["entry-points"][GROUP]
    entries = [metadata.EntryPoint(name, value, GROUP) for name, value in declared.items()]
    entries += metadata.entry_points(group=GROUP)
    return {entry.name: entry for entry in reversed(entries)}


def _split(verbs: dict[str, metadata.EntryPoint], arguments: list[str]) -> tuple[metadata.EntryPoint | None, list[str]]:
    """The verb named by the most leading words, and the arguments after it."""
    for words in range(len(arguments), 0, -1):
        entry = verbs.get(".".join(arguments[:words]))
        if entry is not None:
            return entry, arguments[words:]
    return None, arguments


def _unknown_verb(verbs: dict[str, metadata.EntryPoint], arguments: list[str]) -> int:
    members = [name for name in verbs if name.startswith(arguments[0] + ".")]
    if members and (len(arguments) == 1 or arguments[1] in ("-h", "--help")):
        print("\n".join(_summary_lines({name: verbs[name] for name in members})))
        return EXIT_OK if len(arguments) > 1 else EXIT_USAGE
    for asked in (".".join(arguments[:2]), arguments[0]):
        close = difflib.get_close_matches(asked, verbs, n=1)
        if close:
            break
    hint = f" Did you mean `{close[0].replace('.', ' ')}`?" if close else ""
    print(f"elastic-jax: there is no verb `{arguments[0]}`.{hint} See elastic-jax --help.", file=sys.stderr)
    return EXIT_USAGE


def _summary_lines(verbs: dict[str, metadata.EntryPoint]) -> list[str]:
    width = max(map(len, verbs))
    return [f"  {name.replace('.', ' '):<{width}}  {_summary(verbs[name])}" for name in sorted(verbs)]


def _summary(entry: metadata.EntryPoint) -> str:
    """First line of the verb's docstring; a plug-in that cannot be imported must not break the help."""
    try:
        return (inspect.getdoc(entry.load()) or "").partition("\n")[0]
    except Exception as error:
        return f"(cannot be loaded: {error})"

"""The command: finding verbs, help, and one clear line for whatever the user got wrong."""

import errno
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from checkpoints import GOLDEN

from elastic_jax.cli import entry as cli
from elastic_jax.errors import DataError

ROOT = Path(__file__).parents[3]
VERBS = sorted(name.replace(".", " ") for name in cli.find_verbs())


def interrupted(argv):
    """Gets Ctrl-C."""
    raise KeyboardInterrupt


def refusing(argv):
    """Refuses its data."""
    raise DataError("the record is broken")


def lacking_disk(argv):
    """Finds the disk full."""
    raise OSError(errno.ENOSPC, "No space left on device", "/some/file")


def lacking_rights(argv):
    """May not write."""
    os.mkdir("/proc/nope")


def printing(argv):
    """Prints what the encoding of the output lacks."""
    "größe".encode("ascii")


@pytest.fixture
def verb(monkeypatch):
    """Makes a function of this module the only verb, called `tell it`."""

    def install(function) -> None:
        entry = EntryPoint("tell.it", f"{__name__}:{function.__name__}", cli.GROUP)
        monkeypatch.setattr(cli, "find_verbs", lambda: {entry.name: entry})

    return install


def test_the_promised_verbs_exist():
    assert {"demo", "generate", "inspect", "convert", "train router", "bench prefill"} <= set(VERBS)


def test_help_lists_every_verb_with_its_summary(capsys):
    assert cli.main(["--help"]) == 0
    listing = capsys.readouterr().out
    assert all(verb in listing for verb in VERBS)
    assert "cannot be loaded" not in listing


@pytest.mark.parametrize("name", VERBS)
def test_help_of_every_verb(name, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main([*name.split(), "--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert f"elastic-jax {name}" in text
    assert "--config" in text and "--dry-run" in text


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_refuses_an_unknown_key_of_a_file(name, tmp_path, capsys):
    config = tmp_path / "recipe.yaml"
    config.write_text("mispelt: 1\n")
    assert cli.main([*name.split(), "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert f"{config}: unknown key mispelt" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_refuses_an_unknown_flag(name, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main([*name.split(), "--mispelt", "1"])
    assert leaving.value.code == 2
    assert "--mispelt" in "".join(capsys.readouterr())


def test_no_verb_prints_the_usage(capsys):
    assert cli.main([]) == 2
    assert "usage: elastic-jax VERB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(["generat"], "generate"), (["trian", "router"], "train router"), (["train", "ruoter"], "train router")],
)
def test_unknown_verb_suggests_the_nearest(typed, meant, capsys):
    assert cli.main(typed) == 2
    assert f"Did you mean `{meant}`?" in capsys.readouterr().err


def test_group_of_verbs_lists_its_members(capsys):
    assert cli.main(["train"]) == 2
    assert "train router" in capsys.readouterr().out


def test_refusal_is_one_line_and_exit_code_2(verb, capsys):
    verb(refusing)
    assert cli.main(["tell", "it"]) == 2
    assert capsys.readouterr().err == "elastic-jax tell it: the record is broken\n"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lacking_disk, "/some/file: No space left on device."),
        (lacking_rights, "/proc/nope: No such file or directory."),
        (printing, "the output has the character \\xf6, which its encoding ascii lacks. Set PYTHONIOENCODING=utf-8."),
    ],
)
def test_what_the_system_refuses_is_one_line_and_exit_code_2(verb, capsys, function, says):
    verb(function)
    assert cli.main(["tell", "it"]) == 2
    assert capsys.readouterr().err == f"elastic-jax tell it: {says}\n"


@pytest.mark.parametrize("platform", ["rocm", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(platform, tmp_path):
    command = [
        sys.executable,
        "-m",
        "elastic_jax.cli",
        "convert",
        "--model",
        GOLDEN / "llama3",
        "--out",
        tmp_path / "x",
    ]
    environment = os.environ | {"JAX_PLATFORMS": platform}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"JAX has no device with JAX_PLATFORMS='{platform}'" in done.stderr.splitlines()[-1]


def test_output_that_nobody_reads_ends_the_verb_quietly():
    command = [sys.executable, "-m", "elastic_jax.cli", "generate", "--prompt", "x", "--dry-run"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


def test_debug_shows_where_a_refusal_comes_from(verb):
    verb(refusing)
    with pytest.raises(DataError):
        cli.main(["tell", "it", "--debug"])


def test_ctrl_c_ends_quietly(verb, capsys):
    verb(interrupted)
    assert cli.main(["tell", "it"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_broken_plug_in_leaves_the_help_alone(monkeypatch, capsys):
    broken = EntryPoint("broken", "no_such_module:main", cli.GROUP)
    monkeypatch.setattr(cli, "find_verbs", lambda: {"broken": broken})
    assert cli.main(["--help"]) == 0
    assert "no_such_module" in capsys.readouterr().out


def test_source_tree_needs_no_installation(tmp_path):
    """The verbs of pyproject.toml are found by a Python that has the dependencies but not the package."""
    program = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
    program += "import importlib.metadata as m; m.entry_points = lambda group: []\n"
    program += f"sys.path.insert(0, {str(ROOT)!r})\n"
    program += "from elastic_jax.cli import main; sys.exit(main(['generate', '--help']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--max-new-tokens" in done.stdout


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "elastic_jax.cli", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()

import pytest

from elastic_jax.errors import ConfigError
from eval.bench.torch import torch_process

TROUBLE = {
    "a program that ends": ("echo ModuleNotFoundError: torch >&2; exit 1", "ModuleNotFoundError: torch. Give --torch-"),
    "an error as answer": ('read job; echo \'{"error": "no such kernel"}\'; read more', "torch failed: no such kernel"),
}


@pytest.mark.unit
@pytest.mark.parametrize(("program", "message"), TROUBLE.values(), ids=TROUBLE)
def test_a_python_that_fails_is_a_clear_error(tmp_path, program, message):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    with torch_process(str(python), "torch_prefill.py") as ask, pytest.raises(ConfigError, match=message):
        ask({"tokens": 64})


@pytest.mark.unit
def test_a_python_that_is_not_there_is_a_clear_error():
    with pytest.raises(ConfigError, match="no-such-python cannot be started: .*--torch-python"):
        with torch_process("no-such-python", "torch_prefill.py"):
            pass

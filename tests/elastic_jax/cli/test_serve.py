"""The verb `serve` as a program: its port, its key, its end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest
from programs import environment

from elastic_jax import cli

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


def test_a_port_in_use_is_one_line(checkpoint, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--model", str(checkpoint), "--server.port", str(port)]) == 2
    error = (
        f"elastic-jax serve: port {port} of 127.0.0.1 is in use; end what listens there, or give another --server.port."
    )
    assert capsys.readouterr().err.strip() == error


def test_an_address_that_is_not_here_is_one_line(checkpoint, capsys):
    assert cli.main(["serve", "--model", str(checkpoint), "--server.host", "192.0.2.1"]) == 2
    assert "cannot listen on port 8000 of 192.0.2.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--server.port 65536", "server port is 65536"),
        ("--server.timeout-s 0", "server timeout_s is 0"),
        ("--server.key-variable NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is empty"),
        ("--slots 0", "slots is 0"),
        ("--warm-up -1", "warm_up is -1"),
    ],
)
def test_settings_that_cannot_be(flags, message, capsys):
    try:
        code = cli.main(["serve", "--dry-run", *flags.split()])
    except SystemExit as ended:  # of a parser that says it in its own frame
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err


def ask(address, body):
    headers = {"Authorization": "Bearer the key"}
    request = urllib.request.Request(f"{address}/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as reply:
        return json.load(reply)["choices"][0]


def test_a_server_answers_what_it_has_begun_when_it_is_told_to_end(checkpoint):
    command = [sys.executable, "-m", "elastic_jax.cli", "serve", "--model", str(checkpoint), "--dtype", "float32"]
    command += "--server.port 0 --server.name tiny --server.key-variable KEY_OF_TEST --max-length 500".split()
    variables = environment() | {"KEY_OF_TEST": "the key"}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as program:
        try:
            line = next(line for line in program.stderr if "/v1" in line)
            address = re.search(r"http://\S+/v1", line)[0]
            assert line.startswith(f"tiny at {address}: 8 rows of 500 tokens, cache ")
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                urllib.request.urlopen(f"{address}/models", timeout=60)
            refused.value.close()
            body = {"model": "tiny", "prompt": "Hello", "temperature": 0}
            short, answers = ask(address, body | {"max_tokens": 20}), []
            thread = threading.Thread(target=lambda: answers.append(ask(address, body | {"max_tokens": 480})))
            thread.start()
            time.sleep(0.5)
            os.kill(program.pid, signal.SIGTERM)
            thread.join(300)
            assert program.wait(60) == 0
        finally:
            program.kill()
    assert len(answers) == 1 and answers[0]["text"].startswith(short["text"].rstrip("\N{REPLACEMENT CHARACTER}"))

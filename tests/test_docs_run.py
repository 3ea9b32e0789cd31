"""Blocks of the documentation after `<!-- toy -->` run, page by page and in order, on a model of a few kilobytes."""

import json
import os
import shutil
from pathlib import Path

import jax
import pytest
from chat_tokenizers import chat_tokenizer
from doc_pages import PAGES, TOY, Block, blocks, elastic_arguments, shell_commands
from tiny import random_ids, write_checkpoint

from elastic_jax import cli, from_pretrained

SMALL = {
    "generate": "--model MODEL --max-new-tokens 4",
    "train router": "--dtype float32 --optim.steps 1 --optim.accumulate 1 --data.min-tokens 320 --data.max-tokens 400 "
    "--data.row-length 1024 --tasks.single-qa.count 3 --tasks.multihop-qa.count 3 --tasks.summarization.count 3 "
    "--tasks.code.count 3 --tasks.icl.count 3",
    "train example-data": "--train 4 --held-out 4 --pairs 4 --rankings 1",
    "train synthesise": "--target-tokens 1500 --reserve 40",
}
"""Flags that take the place of a command's own or join them, by verb, so that it takes seconds."""
LONGER = {"docs/serving.md": pytest.mark.slow}
PAGES_RUN = [
    pytest.param(page, marks=LONGER.get(page, ())) for page in PAGES if any(block.mark == TOY for block in blocks(page))
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A decoder with routers and a tokenizer that knows a chat format."""
    folder = tmp_path_factory.mktemp("docs") / "model"
    return write_checkpoint(folder, chat_tokenizer(), max_position_embeddings=4096)


@pytest.fixture
def here(checkpoint, tmp_path, monkeypatch) -> Path:
    """A folder that holds what the pages speak of; it is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MODEL").symlink_to(checkpoint)
    sentences = "The river was slow and wide that year. Nobody crossed it, and the old bridge had fallen. "
    (tmp_path / "TEXTS").mkdir()
    for number in range(3):
        (tmp_path / "TEXTS" / f"prose{number}.txt").write_text(f"{number}. {sentences}" * 80)
        shutil.copyfile(
            Path(os.__file__).with_name(("textwrap.py", "heapq.py", "bisect.py")[number]), f"TEXTS/{number}.py"
        )
    (tmp_path / "long.txt").write_text(sentences * 10)
    pair = {"prompt": "Where is the key?", "chosen": "In the box.", "rejected": ["In the car.", "I cannot tell."]}
    lines = [json.dumps(pair | {"prompt": f"{number}. {pair['prompt']}"}) for number in range(160)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    chunks = ["Room 2 holds 3 chairs."]
    short = {"id": "r", "perspective": "quality", "question": "How many chairs?", "response": "3.", "chunks": chunks}
    (tmp_path / "short.jsonl").write_text(json.dumps(short | {"judgement": "[Analysis]\nRight.\n\n[Score: 10]"}))
    return tmp_path


@pytest.mark.parametrize("page", PAGES_RUN)
def test_page_runs(page: str, here: Path, capsys):
    for block in blocks(page):
        if block.mark != TOY:
            continue
        if block.language == "python":
            run_python(block)
            continue
        for words in shell_commands(block):
            for arguments in elastic_arguments(words):
                assert cli.main(smaller(arguments)) == 0, f"{block.where}: {capsys.readouterr().err}"
    if page == "docs/guide.md":
        assert {file.name for file in (here / "runs/mine").iterdir()} >= {"router", "elastic", "hf"}


def run_python(block: Block) -> None:
    """Runs a block that may speak of a loaded model and a prompt."""
    names = {"__name__": "page"}
    if "EngineConfig" in block.text:
        names |= {"model": from_pretrained("MODEL", dtype="float32"), "prompt_ids": random_ids((40,)).tolist()}
    text = block.text.replace("max_length=8192", "max_length=512").replace("max_new_tokens=200", "max_new_tokens=3")
    # Arrays of a reader's own promote as they are used to.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(text, block.where, "exec"), names)


def smaller(arguments: list[str]) -> list[str]:
    """The command with the flags of its verb in `SMALL`."""
    flags = next((SMALL[verb] for verb in SMALL if arguments[: len(verb.split())] == verb.split()), "").split()
    names = {flag for flag in flags if flag.startswith("--")}
    kept, skipping = [], False
    for word in arguments:
        skipping = word in names if word.startswith("--") else skipping
        kept += [] if skipping else [word]
    return kept + flags

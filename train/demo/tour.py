"""The stations of the demonstration, in order."""

from __future__ import annotations

import time
from dataclasses import fields, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from elastic_jax import smollm2
from elastic_jax.cli.model import answer_text, encode
from elastic_jax.generation import generate
from elastic_jax.inspection import route_prompt, routing_table
from elastic_jax.model import ElasticForCausalLM, to_params
from elastic_jax.plots import routing_heatmap, save_figure
from elastic_jax.weights import from_pretrained, save_pretrained
from elastic_jax.weights.names import ROUTER_PREFIX
from elastic_jax.weights.tokenizer import load_tokenizer
from train.config import DataConfig, OptimConfig, RouterTrainConfig, RunConfig, TasksConfig
from train.data.dataset import load_samples
from train.demo.prompts import PASS_KEY, Prompt, demo_prompts
from train.demo.settings import DemoSettings
from train.router.run import train_router

CHAT = "Give me three tips for a good night's sleep."
ANSWER_TOKENS = 64
RECORDS_PER_TASK = 4
STATIONS = 6


class Tour:
    """Prints numbered headings and remembers what every station needs."""

    def __init__(self, settings: DemoSettings):
        self.settings = settings
        self.out = Path(settings.out)
        self.console = Console(highlight=False)
        self.station = 0

    def heading(self, title: str) -> None:
        self.station += 1
        self.console.print(f"\n[bold]{self.station}/{STATIONS}  {title}[/bold]")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)


def take_tour(settings: DemoSettings) -> None:
    """Loads SmolLM2 with its router, routes, answers, chats, trains and saves; everything lands in `settings.out`."""
    tour = Tour(settings)
    begin = time.perf_counter()

    tour.heading("Load a pretrained model and its routers")
    with tour.console.status("Reading the weights ..."):
        source = smollm2.model_file()
        model = from_pretrained(source, router=smollm2.shipped_router())
        tokenizer = load_tokenizer(source)
    config, router = model.config, model.config.router
    tour.say(
        f"{source.stem}: {config.num_layers} layers of {config.num_kv_heads} KV heads. A sparse head sees blocks of "
        f"{router.block_size} tokens: the first {router.sink_blocks} and the last {router.local_blocks}."
    )
    prompts = demo_prompts(tokenizer, settings.prompt_tokens)

    tour.heading("Route three prompts: the routers look at each and decide which heads need full attention")
    show_routing(tour, model, prompts)
    tour.heading("Ask for the pass key, which only full attention can find")
    ask_passkey(tour, model, tokenizer, prompts[0])
    tour.heading("Chat")
    chat(tour, model, tokenizer)
    tour.heading(f"Train the routers further: {settings.train_steps} steps on texts of the standard library")
    trained = train(tour, model, tokenizer) if settings.train_steps else model
    tour.heading("Save: for transformers, and with the routers")
    save_and_reread(tour, trained)
    tour.say(f"\nDone in {time.perf_counter() - begin:.0f} s. Everything is in {tour.out}/.")


def show_routing(tour: Tour, model: ElasticForCausalLM, prompts: tuple[Prompt, ...]) -> None:
    """Table of sparsity per prompt, and the heat map as a picture."""
    with tour.console.status("Compiling and running ..."):
        routed = [route_prompt(model, prompt.label, prompt.ids) for prompt in prompts]
        picture = save_figure(routing_heatmap(routed), tour.out / "routing.png")
    tour.console.print(routing_table(routed))
    tour.say(f"Picture: {picture}")


def ask_passkey(tour: Tour, model: ElasticForCausalLM, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> None:
    """The same question with full, routed and sparse attention."""
    table = Table("attention", "sparse heads", "answer", "")
    for label, routing in (("full", "full"), ("routed", None), ("sparse", "sparse")):
        with tour.console.status(f"Answering with {label} attention ..."):
            answer = generate(model, jnp.asarray([prompt.ids]), max_new_tokens=8, routing=routing)
        text = answer_text(tokenizer, answer).strip().partition("\n")[0]
        verdict = "right" if text.startswith(PASS_KEY) else "wrong"
        table.add_row(label, f"{float(answer.routing.msr()[0]):.0%}", text, verdict)
    tour.say(f"{len(prompt.ids):,} tokens of Python's reference manual hide one sentence with the key {PASS_KEY}.")
    tour.console.print(table)


def chat(tour: Tour, model: ElasticForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """One question in the model's chat format."""
    ids = encode(tokenizer, CHAT, chat=True)
    with tour.console.status("Answering ..."):
        answer = generate(model, jnp.asarray([ids]), max_new_tokens=ANSWER_TOKENS)
    tour.say(f"> {CHAT}\n{answer_text(tokenizer, answer).strip()}")


def train(tour: Tour, model: ElasticForCausalLM, tokenizer: PreTrainedTokenizerBase) -> ElasticForCausalLM:
    """A few steps from the shipped routers; returns the model with the exported ones."""
    directory = _unused(tour.out / "train")
    config = RouterTrainConfig(
        model=str(smollm2.model_file()),
        init=str(smollm2.shipped_router()),
        router=model.config.router,
        tasks=_few_of_each(TasksConfig()),
        data=DataConfig(min_tokens=512, max_tokens=1024, row_length=1024),
        optim=OptimConfig(steps=tour.settings.train_steps),
        run=RunConfig(directory=str(directory)),
    )
    with tour.console.status("Building labelled records ..."):
        samples = load_samples(config, tokenizer)
    train_router(config, model, samples, directory)
    tour.say(f"Checkpoints, metrics and the trained router: {directory}")
    return from_pretrained(smollm2.model_file(), router=directory / "router")


def save_and_reread(tour: Tour, model: ElasticForCausalLM) -> None:
    """Writes both full formats, opens them again and compares every weight."""
    for form, meaning in (("hf", "backbone, opens in transformers"), ("elastic", "backbone and routers")):
        folder = tour.out / form
        with tour.console.status(f"Writing and reading back {folder} ..."):
            save_pretrained(model, folder, format=form, overwrite=True)
            router = smollm2.shipped_router() if form == "hf" else None  # which has none of its own
            again = to_params(from_pretrained(folder, router=router))
        written = to_params(model)
        if form == "hf":
            written = {path: array for path, array in written.items() if not path.startswith(ROUTER_PREFIX)}
        same = sum(np.array_equal(again[path], array) for path, array in written.items())
        tour.say(f"{folder}: {meaning}; {same} of {len(written)} arrays read back bit for bit.")


def _few_of_each(tasks: TasksConfig) -> TasksConfig:
    counts = {item.name: replace(getattr(tasks, item.name), count=RECORDS_PER_TASK) for item in fields(tasks)}
    return replace(tasks, **counts)


def _unused(folder: Path) -> Path:
    """`folder-1`, or the first number that no earlier run took."""
    number = 1
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return candidate

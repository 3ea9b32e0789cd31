"""`elastic-jax generate`: continue a prompt, or answer a chat message or a file of prompts, several at a time."""

from __future__ import annotations

import codecs
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from elastic_jax.cli.args import EXIT_INCOMPLETE, parse_verb
from elastic_jax.cli.model import (
    ModelSettings,
    answer_text,
    encode,
    load_model,
    load_model_tokenizer,
    read_prompt,
)
from elastic_jax.errors import ConfigError, DataError, ElasticError, shown
from elastic_jax.files import parse_json
from elastic_jax.kv_cache import CacheConfig
from elastic_jax.settings import FilePath, check_least, check_seed, settings_yaml
from elastic_jax.text import stops
from elastic_jax.text.growing import GrowingText

if TYPE_CHECKING:
    from elastic_jax.engine import Request


def read_prompts(file: str) -> list[str | DataError]:
    """Prompts of a text file, one a line, or of a `.jsonl` or `.ndjson` file, the strings under "prompt"; empty lines
    are skipped.

    A line that holds no prompt gives the error that says so in its place, and costs no other line.

    Raises:
        DataError: the file cannot be read, is empty, or is one JSON value.
    """
    try:
        lines = Path(file).read_bytes().removeprefix(codecs.BOM_UTF8).splitlines()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}.") from error
    kind = Path(file).suffix.lower()
    if kind == ".json":
        raise DataError(f'{file} is a JSON file; want one JSON object a line with a string under "prompt", as .jsonl.')
    prompts: list[str | DataError] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                text = line.decode("utf-8")
                prompts.append(_prompt_of_record(text) if kind in (".jsonl", ".ndjson") else text)
            except ValueError as error:
                prompts.append(DataError(f"{file}:{number}: {error}"))
    if not prompts:
        raise DataError(f"{file} holds no prompt; want one a line, or in a .jsonl file one JSON object a line.")
    return prompts


def _prompt_of_record(line: str) -> str:
    record = parse_json(line)
    prompt = record.get("prompt") if isinstance(record, dict) else None
    if not isinstance(prompt, str):
        raise ValueError(f'want a JSON object with a string under "prompt"; got {shown(record)}.')
    return prompt


def answer_all(settings: GenerateSettings, prompts: Sequence[str | DataError]) -> int:
    """Prints a JSON line for every answer when it is complete, with `--stream` also for every piece of one.

    A prompt that cannot be answered gets a line that says why; the others are answered as without it. Returns
    `EXIT_INCOMPLETE` where there was one.
    """
    import numpy as np

    from elastic_jax.engine import Engine, EngineConfig
    from elastic_jax.generation import bucket, end_ids
    from elastic_jax.layout import check_prompts
    from elastic_jax.sampling import Sampling

    tokenizer = load_model_tokenizer(settings)
    sampling = Sampling(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    model = load_model(settings)
    ends = stops.end_tokens(tokenizer, end_ids(model.config))
    ids: dict[int, list[int]] = {}
    failed = 0
    for index, text in enumerate(prompts):
        try:
            if isinstance(text, DataError):
                raise text
            encoded = encode(tokenizer, text, chat=settings.chat, system=settings.system)
            check_prompts(model.config, np.array([encoded]), new_tokens=settings.max_new_tokens)
            ids[index] = encoded
        except ElasticError as error:
            failed += 1
            _print_failure(index, error)
    engine, requests, start = None, [], time.perf_counter()
    if ids:
        longest = max(map(len, ids.values())) + settings.max_new_tokens
        have = model.config.positions
        max_length = bucket(longest) if have is None else min(bucket(longest), have)
        engine = Engine(model, EngineConfig(min(settings.slots, len(ids)), max_length), settings.cache)
        texts: dict[Request, tuple[int, GrowingText]] = {}
        for index, prompt in ids.items():
            request = engine.submit(
                prompt,
                max_new_tokens=settings.max_new_tokens,
                sampling=sampling,
                seed=(settings.seed + index) % 2**31,
                routing=None if settings.routing == "auto" else settings.routing,
                router_bias=settings.router_bias,
                stop_tokens=ends,
            )
            texts[request] = index, GrowingText(tokenizer)
        requests = list(texts)
        for event in engine.run():
            index, answer = texts[event.request]
            if answer.stopped:
                continue
            if event.finish == "error":
                failed += 1
                _print_failure(index, event.request.error)
                continue
            piece = "" if event.token is None else answer.add(event.token)
            if event.finish is not None and not answer.stopped:
                piece += answer.rest()
            if settings.stream and piece:
                _print({"index": index, "piece": piece})
            if answer.stopped:
                engine.cancel(event.request)
            if event.finish is not None or answer.stopped:
                finish = "stop" if answer.stopped else event.finish
                _print({"index": index, "answer": answer.whole, "finish": finish})
    if settings.stats and engine is not None:
        seconds, tokens = time.perf_counter() - start, sum(len(request.tokens) for request in requests)
        print(
            f"{len(ids)} prompts of {sum(map(len, ids.values()))} tokens, {tokens} new ones in {seconds:.2f} s, "
            f"compilation included; cache {engine.nbytes / 2**20:.1f} MiB for {engine.config.slots} rows",
            file=sys.stderr,
        )
    if not failed:
        return 0
    print(f'{failed} of {len(prompts)} prompts failed; their lines say why under "error".', file=sys.stderr)
    return EXIT_INCOMPLETE


def _print_failure(index: int, error: BaseException | None) -> None:
    _print({"index": index, "answer": None, "finish": "error", "error": str(error)})


def _print(record: dict) -> None:
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(record, ensure_ascii=not unicode), flush=True)


@dataclass(frozen=True)
class GenerateSettings(ModelSettings):
    """Prompt, routing and sampling of one answer."""

    prompt: str | None = None
    """Text of the prompt. One that looks like a flag is given as --prompt=TEXT."""
    prompt_file: FilePath | None = None
    """UTF-8 file that holds the prompt, instead of --prompt."""
    prompts: FilePath | None = None
    """File of many prompts: one a line, or a .jsonl file of {"prompt": ...}. Prints one JSON line for each answer; for
    a prompt that cannot be answered the line says why, and the exit code is 3."""
    slots: int = 4
    """Number of prompts of --prompts that are answered at the same time."""
    stream: bool = False
    """With --prompts: also print each piece of an answer as soon as it is there."""
    chat: bool = False
    """Wrap the prompt in the model's chat template."""
    system: str | None = None
    """System message of the chat. By default that of the chat template."""
    max_new_tokens: int = 128
    """Most tokens of an answer."""
    routing: Literal["auto", "full", "sparse", "heads", "routers"] = "auto"
    """`heads`: the calibrated heads of --heads or of the model; `routers`: the routers decide once, when the prompt is
    read; `auto`: `heads` where there are any, else `routers`; `full` and `sparse` force that on every head."""
    router_bias: float = 0.0
    """Number added to logit_full - logit_sparse of every head: above 0 more heads run full, below 0 more run sparse."""
    temperature: float = 0.0
    """Temperature of the sampling. 0: always the most likely token; 1: the distribution of the model."""
    top_k: int = 0
    """Number of most likely tokens to sample from; 0: no limit."""
    top_p: float = 1.0
    """Sample from the fewest tokens whose probabilities add up to this; 1: no limit."""
    seed: int = 0
    """Seed of the sampling, 0 to 2**31 - 1. Prompt i of --prompts has seed + i."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Cache of keys and values of prompt and answer."""
    cache_mib: float | None = None
    """Most MiB that the cache may take; by default no limit. Every head counts as full where the routers decide.
    Not with --prompts."""
    stats: bool = False
    """Print sparsity, size of the cache and speed to stderr at the end."""

    def __post_init__(self) -> None:
        check_least(self, 1, "max_new_tokens")
        check_seed(self.seed)

    def text(self) -> str:
        """The prompt, from whichever of the two places it was given."""
        if (self.prompt is None) == (self.prompt_file is None):
            raise ConfigError("want exactly one prompt: give --prompt TEXT, --prompt-file FILE, or many in --prompts.")
        return read_prompt(self.prompt_file) if self.prompt_file is not None else str(self.prompt)


def main(argv: Sequence[str]) -> int:
    """Continue a prompt, with the routers' choice of attention or a forced one."""
    asked = parse_verb(GenerateSettings, argv, verb="generate", summary=str(main.__doc__))
    settings = asked.settings
    if settings.prompts is not None and (settings.prompt is not None or settings.prompt_file is not None):
        raise ConfigError("--prompts was given beside another prompt; put every prompt into its file.")
    if settings.prompts is not None and settings.cache_mib is not None:
        raise ConfigError("--cache-mib bounds the cache of one prompt; with --prompts, lower --slots or --cache.bits.")
    prompts = [] if settings.prompts is None else read_prompts(settings.prompts)
    text = settings.text() if settings.prompts is None else ""
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0
    if prompts:
        return answer_all(settings, prompts)

    import jax.numpy as jnp

    from elastic_jax.generation import end_ids, generate
    from elastic_jax.sampling import Sampling

    tokenizer = load_model_tokenizer(settings)
    ids = encode(tokenizer, text, chat=settings.chat, system=settings.system)
    sampling = Sampling(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    model = load_model(settings)
    answer = generate(
        model,
        jnp.asarray([ids]),
        max_new_tokens=settings.max_new_tokens,
        cache=settings.cache,
        sampling=sampling,
        routing=None if settings.routing == "auto" else settings.routing,
        router_bias=settings.router_bias,
        stop_tokens=stops.end_tokens(tokenizer, end_ids(model.config)),
        seed=settings.seed,
        cache_mib=settings.cache_mib,
    )
    print(answer_text(tokenizer, answer))
    if settings.stats:
        prefill, decode = answer.timings.prefill_s, answer.timings.decode_s
        print(
            f"{len(ids)} prompt tokens in {prefill:.2f} s, {int(answer.lengths[0])} new ones in {decode:.2f} s, "
            f"compilation included; MSR {float(answer.routing.msr()[0]):.2f}; "
            f"cache {answer.cache_bytes / 2**20:.1f} MiB",
            file=sys.stderr,
        )
    return 0

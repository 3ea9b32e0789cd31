"""The part of `elastic-jax generate` that answers a file of prompts, several at a time."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_jax.cli_model import encode, load_model, load_model_tokenizer, read_prompt
from elastic_jax.errors import DataError
from elastic_jax.json_text import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from elastic_jax.cli_generate import GenerateSettings
    from elastic_jax.engine import Request


def read_prompts(file: str) -> list[str]:
    """Prompts of a text file, one a line, or of a `.jsonl` file, the strings under "prompt"; empty lines are skipped.

    Raises:
        DataError: the file cannot be read, holds no prompt, or a line that is no record.
    """
    lines = [(i, line) for i, line in enumerate(read_prompt(file).split("\n"), 1) if line.strip()]
    if Path(file).suffix != ".jsonl":
        return [line.rstrip("\r") for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            prompt = parse_json(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f'{file}, line {number}: want a JSON object with a "prompt"; got {line[:80]!r}.') from error
        if not isinstance(prompt, str):
            raise DataError(f"{file}, line {number}: the prompt is {prompt!r}; want a string.")
        prompts.append(prompt)
    return prompts


def answer_all(settings: GenerateSettings, prompts: list[str]) -> int:
    """Prints a JSON line for every answer when it is complete, with `--stream` also for every piece of one."""
    from elastic_jax.engine import Engine, EngineConfig
    from elastic_jax.generation import bucket
    from elastic_jax.sampling import Sampling

    tokenizer = load_model_tokenizer(settings)
    ids = [encode(tokenizer, text, chat=settings.chat, system=settings.system) for text in prompts]
    sampling = Sampling(temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    model = load_model(settings)
    longest = max(map(len, ids)) + settings.max_new_tokens
    have = model.config.max_position_embeddings
    max_length = bucket(longest) if model.config.rope.type == "dynamic" else max(min(bucket(longest), have), longest)
    engine = Engine(model, EngineConfig(min(settings.slots, len(ids)), max_length), settings.cache)
    start = time.perf_counter()
    texts: dict[Request, AnswerText] = {}
    for index, prompt in enumerate(ids):
        request = engine.submit(
            prompt,
            max_new_tokens=settings.max_new_tokens,
            sampling=sampling,
            seed=settings.seed + index,
            routing=None if settings.routing == "auto" else settings.routing,
            router_bias=settings.router_bias,
        )
        texts[request] = AnswerText(tokenizer, index)
    for event in engine.run():
        answer = texts[event.request]
        piece = "" if event.token is None else answer.add(event.token)
        if settings.stream and piece:
            _print({"index": answer.index, "piece": piece})
        if event.finish is not None:
            _print({"index": answer.index, "answer": answer.whole, "finish": event.finish})
    if settings.stats:
        seconds, tokens = time.perf_counter() - start, sum(len(request.tokens) for request in texts)
        print(
            f"{len(ids)} prompts of {sum(map(len, ids))} tokens, {tokens} new ones in {seconds:.2f} s, compilation "
            f"included; cache {engine.nbytes / 2**20:.1f} MiB for {engine.config.slots} rows",
            file=sys.stderr,
        )
    return 0


class AnswerText:
    """Text of a growing answer, without special tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, index: int):
        self.index, self.whole = index, ""
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._told = 0

    def add(self, token: int) -> str:
        """What one more token adds; nothing while a character is incomplete."""
        self._tokens.append(token)
        self.whole = str(self._tokenizer.decode(self._tokens, skip_special_tokens=True))
        if self.whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        piece, self._told = self.whole[self._told :], len(self.whole)
        return piece


def _print(record: dict) -> None:
    print(json.dumps(record, ensure_ascii=False), flush=True)

"""Files of checkpoints: configuration, weights, routers, tokenizer, chat template."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from chat_tokenizers import chat_tokenizer
from checkpoints import GOLDEN
from gguf_files import write_gguf
from outside_kind import Kind
from transformers import PreTrainedTokenizerFast

from elastic_jax.config import ModelConfig, RouterConfig
from elastic_jax.config.model import config_to_hf
from elastic_jax.files import read_json, read_text
from elastic_jax.heads import CurvePoint, Heads, load_heads, save_duo_attention
from elastic_jax.text.chat import answered_texts
from elastic_jax.text.tokens import encode_chat, encode_text
from elastic_jax.weights import from_pretrained, save_pretrained
from elastic_jax.weights.gguf import open_gguf
from elastic_jax.weights.hf import open_directory
from elastic_jax.weights.router_only import open_router
from elastic_jax.weights.safetensors_dir import open_weights
from elastic_jax.weights.tokenizer import load_tokenizer

TEMPLATE = (
    "{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' -%}"
    "{%- for message in messages -%}"
    "{%- if message.role not in ('system', 'user', 'assistant') -%}"
    "{{ raise_exception('Unknown role ' ~ message.role) }}{%- endif -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{{ message.content | trim }}{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def _copy(name: str, *files: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for file in files or ("config.json", "model.safetensors"):
            shutil.copyfile(GOLDEN / name / file, folder / file)

    return write


def _sharded(folder: Path) -> None:
    save_pretrained(from_pretrained(GOLDEN / "llama3"), folder, max_shard_bytes=30_000, overwrite=True)


def _routers(folder: Path) -> None:
    model = from_pretrained(GOLDEN / "qwen3_tied")
    model.fresh_routers = False
    save_pretrained(model, folder, format="router", overwrite=True)


HEADS = Heads(np.arange(6).reshape(2, 3), RouterConfig(), curve=(CurvePoint(2, 2 / 3, 0.1),), weights="ab" * 32)


def _heads(folder: Path) -> None:
    HEADS.save(folder)


def _duo_attention(folder: Path) -> None:
    save_duo_attention(HEADS, folder)


def _vocabulary(folder: Path) -> None:
    tokens = ["<s>", "</s>", *(chr(c) for c in range(33, 127)), "Ġ", "th", "the"]
    extra = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    write_gguf(folder / "model.gguf", "llama_tied", extra_metadata=extra)


def _config(folder: Path) -> None:
    config = ModelConfig.from_hf(read_json(folder / "config.json"))
    assert ModelConfig.from_hf(config_to_hf(config)).num_layers == config.num_layers


def _tensors(folder: Path) -> None:
    source = open_gguf(folder / "model.gguf").source
    for name in source.tensors:
        source.read(name)


def _tokenizer(folder: Path) -> None:
    tokenizer = copy.deepcopy(chat_tokenizer())
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "stop_strings": ["###"]}))


def _tokenizer_with_map(folder: Path) -> None:
    _tokenizer(folder)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "a"}))


def _all_routers(folder: Path) -> None:
    _, source = open_router(folder, BASE)
    for name in source.tensors:
        source.read(name)


def _encode(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    encode_text(tokenizer, "A lamp, and a <|im_end|>.", begin=True)


def _template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def render(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer().backend_tokenizer)
    tokenizer.chat_template = read_text(folder / "chat_template.jinja")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?<|im_end|>"}]
    _, (whole,) = answered_texts(tokenizer, turns, ["<think>Hm.</think>Ann."])
    encode_chat(tokenizer, whole)


BASE = ModelConfig.from_hf(read_json(GOLDEN / "qwen3_tied" / "config.json"))


MODELS = {
    "config.json of Llama": Kind(_copy("llama3", "config.json"), "config.json", _config, "json"),
    "config.json with rope factors": Kind(_copy("llama_longrope", "config.json"), "config.json", _config, "json"),
    "config.json of Elastic Attention": Kind(_copy("official_qwen3", "config.json"), "config.json", _config, "json"),
    "config.json beside weights": Kind(_copy("qwen3_tied"), "config.json", from_pretrained, "json"),
    "safetensors": Kind(_copy("llama_tied"), "model.safetensors", from_pretrained, "bytes"),
    "safetensors index": Kind(_sharded, "model.safetensors.index.json", open_weights, "json"),
    "router_config.json": Kind(_routers, "router_config.json", lambda f: open_router(f, BASE), "json"),
    "heads_config.json": Kind(_heads, "heads_config.json", load_heads, "json"),
    "arrays of heads": Kind(_heads, "heads.safetensors", load_heads, "bytes"),
    "DuoAttention's table": Kind(_duo_attention, "full_attention_heads.tsv", load_heads, "bytes"),
    "GGUF": Kind(lambda f: write_gguf(f / "model.gguf", "llama_tied"), "model.gguf", _tensors, "bytes"),
    "GGUF vocabulary": Kind(_vocabulary, "model.gguf", lambda f: load_tokenizer(f / "model.gguf"), "bytes"),
    "tokenizer.json": Kind(_tokenizer, "tokenizer.json", _encode, "json"),
    "tokenizer_config.json": Kind(_tokenizer, "tokenizer_config.json", _encode, "json"),
    "stop strings": Kind(_tokenizer, "generation_config.json", _encode, "json"),
    "end tokens": Kind(
        lambda f: (_copy("llama_tied")(f), _tokenizer(f)), "generation_config.json", open_directory, "json"
    ),
    "chat template": Kind(_template, "chat_template.jinja", render, "bytes"),
    "special_tokens_map.json": Kind(_tokenizer_with_map, "special_tokens_map.json", _encode, "json"),
    "routers": Kind(_routers, "router.safetensors", _all_routers, "bytes"),
}

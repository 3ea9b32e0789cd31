"""What several verbs need: the settings that name a model, the model and its tokenizer, and prompts as tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from elastic_jax import smollm2
from elastic_jax.errors import DataError
from elastic_jax.files import read_text
from elastic_jax.settings import FilePath
from elastic_jax.text import stops
from elastic_jax.text.chat import chat_text
from elastic_jax.text.tokens import encode_chat, encode_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from elastic_jax.generation import Generation
    from elastic_jax.model import ElasticForCausalLM


@dataclass(frozen=True)
class ModelSettings:
    """Which model, with which routers or calibrated heads."""

    model: FilePath = smollm2.NAME
    """Hugging Face directory or hub id, .gguf file, Elastic Attention checkpoint, or `smollm2`: the demo's model."""
    router: FilePath | None = None
    """Directory of the routers to use. By default those of the model, for `smollm2` the shipped ones, else new ones."""
    dtype: Literal["bfloat16", "float32", "float16", "auto"] = "bfloat16"
    """Number format of the weights in memory; `auto` keeps the stored one."""
    fresh_routers: bool = False
    """Let routers decide that have learnt nothing, where the model has none; by default every head then runs full."""
    heads: FilePath | None = None
    """Calibrated heads to use: what `train heads` writes, a full_attention_heads.tsv of DuoAttention, or `smollm2` for
    the shipped ones. By default those saved with the model."""
    msr: float | None = None
    """Share of heads, 0 to 1, that the calibrated heads leave sparse; by default as they say."""

    def resolved(self) -> tuple[str, str | None]:
        """Source and router with the name `smollm2` replaced by the files behind it."""
        router = str(smollm2.shipped_router()) if self.model == smollm2.NAME else None
        return smollm2.source(self.model), self.router or router


def load_model(settings: ModelSettings) -> ElasticForCausalLM:
    """The model that the settings name."""
    from elastic_jax.weights import from_pretrained

    source, router = settings.resolved()
    model = from_pretrained(source, dtype=settings.dtype, router=router, heads=settings.heads, msr=settings.msr)
    model.fresh_routers = model.fresh_routers and not settings.fresh_routers
    return model


def load_model_tokenizer(settings: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that the settings name."""
    from elastic_jax.weights.tokenizer import load_tokenizer

    return load_tokenizer(settings.resolved()[0])


def read_prompt(file: str) -> str:
    """Text of a prompt file.

    Raises:
        DataError: the file is missing, not text, or empty.
    """
    text = read_text(Path(file))
    if not text.strip():
        raise DataError(f"prompt file {file} is empty; want the text of a prompt.")
    return text


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, chat: bool, system: str | None = None) -> list[int]:
    """Token ids of a prompt, wrapped in the model's chat template where asked.

    Control tokens that the text spells are tokens in a prompt without template, and text in a chat.

    Raises:
        DataError: nothing to encode, or a chat prompt for a model without chat template.
    """
    if not text:
        raise DataError("the prompt is empty; want at least one character.")
    if not chat:
        return encode_text(tokenizer, text, begin=True, controls=True)
    turns = [{"role": "system", "content": system}] if system else []
    turns.append({"role": "user", "content": text})
    return encode_chat(tokenizer, chat_text(tokenizer, turns, thinking=True))


def answer_text(tokenizer: PreTrainedTokenizerBase, answer: Generation) -> str:
    """Text of the first generated row up to a stop string, without special tokens."""
    return stops.answer_text(tokenizer, answer.tokens[0, : int(answer.lengths[0])].tolist())[0]

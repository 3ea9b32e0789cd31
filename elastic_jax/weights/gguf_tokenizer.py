"""Tokenizers from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE ("llama")."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elastic_jax.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import PreTokenizer

_LOG = logging.getLogger(__name__)

# The word-splitting rules behind `tokenizer.ggml.pre`, as public regular expressions of the models' authors.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
_SPLITS = dict.fromkeys(_LLAMA3_NAMES, _LLAMA3) | dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2)
_LLAMA3_BEGIN = "<|begin_of_text|>"
_GPT2 = ("gpt-2", "default")
_DIGITS_ONE_BY_ONE = ("smollm", "starcoder")
_RULES = (*_GPT2, *_DIGITS_ONE_BY_ONE, *_SPLITS)

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
"""Token types of GGUF; all but normal ones are matched whole in the text."""

_SPACE = "\u2581"
"""SentencePiece's visible space."""


@dataclass(frozen=True)
class Vocabulary:
    """The part of GGUF metadata that describes a tokenizer."""

    kind: str
    """"gpt2" or "llama"."""
    rule: str
    """Name of the word-splitting rule (byte-level BPE only)."""
    tokens: list[str]
    types: list[int]
    merges: list[tuple[str, str]]
    """In the order in which they are applied (byte-level BPE only)."""
    scores: list[float]
    """Pieces with a higher score are merged first (SentencePiece only)."""
    named: dict[str, str]
    """Special tokens by their names in transformers: bos_token, eos_token, unk_token, pad_token."""
    add_bos: bool
    add_prefix_space: bool

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], where: str) -> Vocabulary:
        """Reads the keys below `tokenizer.`.

        Raises:
            ConfigError: another kind of vocabulary, an unknown splitting rule, or lists of unequal length.
        """
        kind, rule = metadata.get("ggml.model"), metadata.get("ggml.pre")
        if kind not in ("gpt2", "llama"):
            raise ConfigError(
                f"{where} has a {kind!r} vocabulary; only byte-level BPE (gpt2) and SentencePiece BPE (llama) are read "
                "from GGUF. Load the tokenizer of the original Hugging Face repository instead."
            )
        tokens = metadata.get("ggml.tokens", [])
        if kind == "gpt2" and rule is None:
            rule = "llama-bpe" if _LLAMA3_BEGIN in tokens else "default"
            _LOG.warning(
                "%s does not say by which rule words are split (tokenizer.ggml.pre), as files before May 2024; it "
                "is read as %s. Where the model was trained with another rule, its answers get worse: use a newer one.",
                where,
                "Llama 3" if rule == "llama-bpe" else "GPT-2",
            )
        if kind == "gpt2" and rule not in _RULES:
            raise ConfigError(f"{where} splits words by the rule {rule!r}; known: {', '.join(_RULES)}.")
        types = metadata.get("ggml.token_type", [_NORMAL] * len(tokens))
        scores = metadata.get("ggml.scores", []) if kind == "llama" else [0.0] * len(tokens)
        if not tokens:
            raise ConfigError(f"{where} lists no tokens.")
        if not len(tokens) == len(types) == len(scores):
            raise ConfigError(f"{where} lists {len(tokens)} tokens, {len(types)} types and {len(scores)} scores.")
        keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
        ids = {name: metadata.get(f"ggml.{key}_token_id") for name, key in keys.items()}
        return cls(
            kind=kind,
            rule=rule or "default",
            tokens=tokens,
            types=types,
            merges=[(left, right) for left, _, right in (m.partition(" ") for m in metadata.get("ggml.merges", []))],
            scores=scores,
            named={name: tokens[i] for name, i in ids.items() if i is not None and 0 <= i < len(tokens)},
            # Texts of Llama 3 begin with this token as well, although its files do not say so.
            add_bos=metadata.get("ggml.add_bos_token", kind == "llama" or rule in _LLAMA3_NAMES),
            add_prefix_space=metadata.get("ggml.add_space_prefix", True),
        )


def build_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """The `tokenizers` pipeline of a vocabulary."""
    from tokenizers import AddedToken

    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = _byte_level(vocabulary, ids) if vocabulary.kind == "gpt2" else _sentencepiece(vocabulary, ids)
    typed = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t, kind in typed if kind in (_UNKNOWN, _CONTROL)])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in typed if kind == _USER_DEFINED])
    if vocabulary.add_bos and "bos_token" in vocabulary.named:
        _prepend(tokenizer, vocabulary.named["bos_token"])
    return tokenizer


def _byte_level(vocabulary: Vocabulary, ids: dict[str, int]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    split = _SPLITS.get(vocabulary.rule)
    model: BPE = models.BPE(ids, vocabulary.merges, ignore_merges=split == _LLAMA3)
    tokenizer = Tokenizer(model)
    if split == _QWEN2:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _splitter(vocabulary.rule)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splitter(rule: str) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    if rule in _SPLITS:
        words = pre_tokenizers.Split(Regex(_SPLITS[rule]), behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule in _DIGITS_ONE_BY_ONE:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return words


def _sentencepiece(vocabulary: Vocabulary, ids: dict[str, int]) -> Tokenizer:
    """SentencePiece joins the neighbours whose union has the best score, so every split of a piece is a merge."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    order = sorted(range(len(vocabulary.tokens)), key=lambda i: -vocabulary.scores[i])
    splits = ((vocabulary.tokens[i][:cut], vocabulary.tokens[i][cut:]) for i in order
              for cut in range(1, len(vocabulary.tokens[i])))  # fmt: skip
    merges = [(left, right) for left, right in splits if left in ids and right in ids]
    unknown = next((t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == _UNKNOWN), None)
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefix = [normalizers.Prepend(_SPACE)] if vocabulary.add_prefix_space else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if vocabulary.add_prefix_space else []
    tokenizer.decoder = decoders.Sequence([*decoding, *strip])
    return tokenizer


def _prepend(tokenizer: Tokenizer, bos: str) -> None:
    from tokenizers import processors

    template = f"{bos} $A"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, pair=f"{template} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )

"""Requests of the OpenAI protocol: bodies of `/v1/completions` and `/v1/chat/completions` as checked questions."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from elastic_jax.engine.requests import MOST_LOGPROBS
from elastic_jax.errors import ElasticError, shown
from elastic_jax.files import parse_json, valid_unicode
from elastic_jax.sampling import Sampling
from elastic_jax.serve.fields import Fields, Refused
from elastic_jax.text.chat import chat_text
from elastic_jax.text.tokens import encode_chat, encode_text

_MOST_STOPS = 16
_DEFAULT_TOKENS = 16
"""Length of a completion whose request names none, as the protocol has it."""
_SHARED = {"model", "n", "stream", "stream_options", "stop", "seed", "temperature", "top_p", "top_k", "logprobs"}
_SHARED |= {"max_tokens"}
_IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
_ASKS_FOR_NOTHING: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Features of the protocol that this server lacks, with the values that do not use them."""
_TEXT = _SHARED | {"prompt", "best_of"} | _ASKS_FOR_NOTHING.keys()
_CHAT = _SHARED | {"messages", "max_completion_tokens", "top_logprobs"} | _ASKS_FOR_NOTHING.keys()
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True)
class Question:
    """What a client asks for, checked as far as it can be without the engine."""

    chat: bool
    prompts: list[list[int]]
    """Token ids of each prompt."""
    answers: int
    """To each prompt."""
    max_tokens: int | None
    sampling: Sampling
    seed: int
    """Of the first answer to each prompt; further ones count up from it."""
    stops: tuple[str, ...]
    """Strings that end an answer, besides those of the model."""
    top_logprobs: int | None
    """How many likely tokens to name in each place; None for no log-probabilities."""
    stream: bool
    usage_in_stream: bool


def read_question(body: bytes, tokenizer: Any, *, chat: bool, model: str, most_answers: int) -> Question:
    """The question in the body of a request.

    Args:
        model: the name that the request must ask for.
        most_answers: prompts times answers to each, at most.

    Raises:
        Refused: what is wrong with it, for the client.
    """
    try:
        parsed = parse_json(body)
    except ValueError as error:
        raise Refused(400, f"the body is no JSON: {error}.") from error
    fields = Fields(parsed, _CHAT if chat else _TEXT, _IGNORED)
    name = fields.get("model")
    if not isinstance(name, str):
        raise fields.refusal("model", f"the string {model!r}")
    if name != model:
        raise Refused(404, f"there is no model {shown(name)}; this server has {model!r}.", code="model_not_found")
    fields.refuse_unless(_ASKS_FOR_NOTHING)
    options = fields.get("stream_options") or {}
    if not isinstance(options, dict) or not isinstance(options.get("include_usage", False), bool):
        raise fields.refusal("stream_options", '{"include_usage": true} or {"include_usage": false}')
    answers = fields.whole("n", 1, 1, most_answers)
    fields.whole("best_of", answers, answers, answers)
    tokens = fields.whole("max_tokens", None if chat else _DEFAULT_TOKENS, 1, 2**31 - 1)
    try:
        prompts = [_chat_prompt(fields, tokenizer)] if chat else _text_prompts(fields, tokenizer)
        sampling = Sampling(
            fields.number("temperature", 1.0, 0.0, 2.0),
            fields.whole("top_k", 0, 0, 2**31 - 1),
            fields.number("top_p", 1.0, 0.0, 1.0),
        )
    except ElasticError as error:
        raise Refused(400, str(error)) from error
    if len(prompts) * answers > most_answers:
        wrong = f"{len(prompts)} prompts with {answers} answers each; want {most_answers} answers at most."
        raise Refused(400, wrong, param="n")
    return Question(
        chat=chat,
        prompts=prompts,
        answers=answers,
        max_tokens=fields.whole("max_completion_tokens", tokens, 1, 2**31 - 1) if chat else tokens,
        sampling=sampling,
        seed=fields.whole("seed", secrets.randbits(31), -(2**63), 2**63) % 2**31,
        stops=fields.strings("stop", _MOST_STOPS),
        top_logprobs=_top_logprobs(fields, chat=chat),
        stream=fields.flag("stream"),
        usage_in_stream=options.get("include_usage", False),
    )


def _top_logprobs(fields: Fields, *, chat: bool) -> int | None:
    if not chat:
        return fields.whole("logprobs", None, 0, MOST_LOGPROBS)
    most = fields.whole("top_logprobs", 0, 0, MOST_LOGPROBS)
    if fields.flag("logprobs"):
        return most
    if most:
        raise fields.refusal("top_logprobs", '0, or "logprobs": true beside it')
    return None


def _text_prompts(fields: Fields, tokenizer: Any) -> list[list[int]]:
    given = fields.get("prompt")
    wrong = fields.refusal("prompt", "a text, a list of texts, token ids, or a list of lists of token ids")
    several = given if isinstance(given, list) and given and isinstance(given[0], str | list) else [given]
    prompts = []
    for prompt in several:
        if isinstance(prompt, str) and prompt:
            prompts.append(encode_text(tokenizer, prompt, begin=True, controls=True))
        elif isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
            prompts.append(prompt)
        else:
            raise wrong
    return prompts


def _chat_prompt(fields: Fields, tokenizer: Any) -> list[int]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.refusal("messages", "a list of one message or more")
    turns = [_turn(number, message) for number, message in enumerate(messages)]
    if turns[-1]["role"] == "assistant":
        raise Refused(400, "the last message is of the assistant; want one that it can answer.", param="messages")
    return encode_chat(tokenizer, chat_text(tokenizer, turns, thinking=True))


def _turn(number: int, message: object) -> dict[str, str]:
    def wrong(want: str) -> Refused:
        return Refused(400, f"messages[{number}] is {shown(message)}; want {want}.", param="messages")

    if not isinstance(message, dict):
        raise wrong("an object with role and content")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        raise wrong(f"one of the roles {', '.join(_ROLES)}")
    if message.get("tool_calls"):
        raise wrong("no tool_calls, for this server does not support them")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [text for text in parts if isinstance(text, str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise wrong("a text, or a list of parts of type text, as content")
    return {"role": _ROLES[role], "content": valid_unicode(content)}

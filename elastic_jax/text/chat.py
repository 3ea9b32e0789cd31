"""Conversations as the text that a model's chat template makes of them.

The template alone decides what stands around the messages, the beginning-of-text token included. The text of a message
is text: where it spells a control token such as `<|im_end|>`, `ChatText` remembers the place, and
`elastic_jax.text.tokens.encode_chat` gives it the tokens of ordinary text. So no message can end its own turn.
"""

from __future__ import annotations

import datetime
import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastic_jax.errors import DataError
from elastic_jax.files import valid_unicode

_LOG = logging.getLogger(__name__)

Turn = Mapping[str, str]
"""A message with its `role` and `content`."""

Span = tuple[int, int]
"""First character and last + 1 of a part of a text."""

_PART_OF_ANSWER = re.compile(r"</?(?:think|thinking|tool_call)>|\[/?THINK\]")
"""Tags that an assistant's message may hold as tokens: they are part of the answer and end no turn."""
_REASONING_END = "</think>"
_FORMAT = re.compile(r"""(?=(["'])([^"'\n]*%[^"'\n]*)\1)""")
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}"
    "{%- if format not in fixed_dates -%}{{ raise_exception('no date for ' ~ format) }}{%- endif -%}"
    "{{ fixed_dates[format] }}{%- endmacro +%}"
)
"""Put before a template, this hides the clock of transformers."""
_PROBE = "Be brief."
_MARKS = range(0xF0000, 0xFFFFE)
"""Private characters, which stand for spelled control tokens while the template works on the messages."""


@dataclass(frozen=True)
class ChatText:
    """The text of a conversation, and the places where its messages spell control tokens."""

    text: str
    spelled: tuple[Span, ...] = ()

    def __add__(self, more: str) -> ChatText:
        """The text with more of the template's own kind behind it."""
        return ChatText(self.text + more, self.spelled)

    def after(self, prompt: ChatText) -> ChatText:
        """What follows the prompt that this text begins with."""
        start = len(prompt.text)
        later = tuple((first - start, end - start) for first, end in self.spelled if first >= start)
        return ChatText(self.text[start:], later)


def check_template(tokenizer: Any) -> None:
    """Raises `DataError` for a tokenizer without chat template."""
    _template(tokenizer)


def fix_date(tokenizer: Any, date: str) -> None:
    """Sets the date (`2026-11-29`) that this tokenizer's template writes, for a run that goes on on another day.

    Raises:
        DataError: no date of that form.
    """
    try:
        tokenizer.chat_date = datetime.date.fromisoformat(date)
    except (TypeError, ValueError):
        raise DataError(f"{date!r} is no date for the chat template; want YYYY-MM-DD.") from None


def template_date(tokenizer: Any) -> str | None:
    """The date that the tokenizer's template writes: the one of `fix_date`, else today. None if it writes none."""
    template = getattr(tokenizer, "chat_template", None)
    return _date(tokenizer).isoformat() if template and "strftime_now" in str(template) else None


def chat_text(tokenizer: Any, turns: Sequence[Turn], *, thinking: bool = False) -> ChatText:
    """The text of a conversation. Unless the assistant has the last word, it ends where the answer begins.

    A system message goes into the first user message where the template has no system role, and the log says so.

    Args:
        thinking: leave it to the template whether the model thinks before it answers; otherwise it does not.

    Raises:
        DataError: no chat template, or one that fails or refuses the conversation.
    """
    turns = [{**turn, "content": valid_unicode(turn["content"])} for turn in turns]
    if turns and turns[0]["role"] == "system" and not _takes_system(tokenizer, _template(tokenizer)):
        say_once(
            f"The chat template of {_name(tokenizer)} has no system role: the system message is put before the first "
            "user message."
        )
        turns = _without_system(turns)
    marks = _marks(tokenizer, turns)
    marked = [{**turn, "content": _mark(turn, marks)} for turn in turns]
    return _restore(_render(tokenizer, marked, thinking=thinking), marks)


def answered_texts(tokenizer: Any, turns: Sequence[Turn], answers: Sequence[str]) -> tuple[ChatText, list[ChatText]]:
    """The text of a prompt, and of the conversation with each of the answers, which begins with that of the prompt.

    Where an answer holds its reasoning (`<think>...</think>`), the prompt is the one that lets the model think.

    Raises:
        DataError: no chat template, one that fails, leaves reasoning out, or does not continue its prompt with the
            answer.
    """
    thinking = any(_REASONING_END in answer for answer in answers)
    prompt = chat_text(tokenizer, turns, thinking=thinking)
    wholes = []
    for answer in answers:
        whole = chat_text(tokenizer, [*turns, {"role": "assistant", "content": answer}], thinking=thinking)
        reasoning = answer.partition(_REASONING_END)[0] if _REASONING_END in answer else ""
        if reasoning.replace("<think>", "").strip() not in whole.text:
            raise DataError(
                f"The answer has reasoning ({_REASONING_END}), which the chat template of {_name(tokenizer)} leaves "
                "out. Use a template that keeps it, or take the reasoning out of the answer."
            )
        if not whole.text.startswith(prompt.text):
            raise DataError(
                f"The chat template of {_name(tokenizer)} does not continue its own prompt, which ends with "
                f"{prompt.text[-40:]!r}, with the answer. Use another template."
            )
        wholes.append(whole)
    return prompt, wholes


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """The tokens that only a template may write, with their ids: special ones, and added ones that it names."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return {
        str(token): number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special or (not token.content.isspace() and token.content in template)
    }


def _template(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping) and template:
        if "default" not in template:
            raise DataError(
                f"{_name(tokenizer)} has several chat templates ({', '.join(sorted(template))}) and none named "
                "default. Put the one to use into its chat_template.jinja."
            )
        template = template["default"]
    if not template:
        raise DataError(
            "The model has no chat template. Use an instruction-tuned model, put a chat_template.jinja beside its "
            "tokenizer.json, or ask for prompts without template (leave --chat out; data.template raw)."
        )
    return template


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or "the tokenizer"


def _date(tokenizer: Any) -> datetime.date:
    return getattr(tokenizer, "chat_date", None) or datetime.date.today()


def _render(tokenizer: Any, turns: Sequence[Turn], *, thinking: bool) -> str:
    template = _template(tokenizer)
    options: dict[str, Any] = {} if thinking else {"enable_thinking": False}
    try:
        if "strftime_now" in template:
            options |= {"chat_template": _FIXED_DATE + template, "fixed_dates": _dates(template, _date(tokenizer))}
        return str(
            tokenizer.apply_chat_template(
                list(turns),
                tokenize=False,
                add_generation_prompt=not turns or turns[-1]["role"] != "assistant",
                **options,
            )
        )
    except Exception as error:  # a template is a program of somebody else's and fails in any way
        line = f", line {number}" if (number := getattr(error, "lineno", None)) else ""
        roles = ", ".join(dict.fromkeys(str(turn["role"]) for turn in turns))
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"The chat template of {_name(tokenizer)} fails on a conversation of {roles or 'no messages'}{line}: "
            f"{reason[:300]}. Correct the template, use other roles, or ask for prompts without template."
        ) from error


def _dates(template: str, date: datetime.date) -> dict[str, str]:
    """The date in every format that the template may ask for: its quoted strings with a percent sign."""
    return {form: date.strftime(form) for _, form in _FORMAT.findall(template)}


@functools.lru_cache(maxsize=16)
def _takes_system(tokenizer: Any, template: str) -> bool:
    """Whether a system message gets into the text; true for a template that fails without one, too.

    Kept for the tokenizer with this `template`, as every conversation asks.
    """
    user = {"role": "user", "content": "x"}
    try:
        return _PROBE in _render(tokenizer, [{"role": "system", "content": _PROBE}, user], thinking=False)
    except DataError:
        pass
    try:
        _render(tokenizer, [user], thinking=False)
    except DataError:
        return True
    return False


def _without_system(turns: Sequence[Turn]) -> list[dict[str, str]]:
    system, *others = [dict(turn) for turn in turns]
    if not others or others[0]["role"] != "user":
        return [{**system, "role": "user"}, *others]
    return [{**others[0], "content": f"{system['content']}\n\n{others[0]['content']}"}, *others[1:]]


def _marks(tokenizer: Any, turns: Iterable[Turn]) -> dict[str, str]:
    """A character that no message holds for each control token that one of them spells."""
    text = "\0".join(turn["content"] for turn in turns)
    controls = control_tokens(tokenizer)
    beginnings = {start for start in {token[:2] for token in controls} if start in text}
    spelled = [token for token in controls if token[:2] in beginnings and token in text]
    if not spelled:
        return {}
    say_once(
        f"Messages spell control tokens of {_name(tokenizer)} ({', '.join(sorted(spelled)[:3])}): there they are "
        "tokenised as the text that they are."
    )
    free = (chr(code) for code in _MARKS if chr(code) not in text)
    return {token: next(free) for token in sorted(spelled, key=len, reverse=True)}


def _mark(turn: Turn, marks: Mapping[str, str]) -> str:
    content = turn["content"]
    for token, mark in marks.items():  # longer tokens first: one may hold another
        if turn["role"] != "assistant" or not _PART_OF_ANSWER.fullmatch(token):
            content = content.replace(token, mark)
    return content


def _restore(text: str, marks: Mapping[str, str]) -> ChatText:
    """The text with the spelled tokens in the places of their marks."""
    if not marks:
        return ChatText(text)
    tokens = {mark: token for token, mark in marks.items()}
    pieces, spelled, position = [], [], 0
    for piece in re.split(f"([{''.join(tokens)}])", text):
        if piece in tokens:
            piece = tokens[piece]
            spelled.append((position, position + len(piece)))
        pieces.append(piece)
        position += len(piece)
    return ChatText("".join(pieces), tuple(spelled))


@functools.cache
def say_once(message: str) -> None:
    """Warns of something about a tokenizer or its template, once in a process."""
    _LOG.warning(message)

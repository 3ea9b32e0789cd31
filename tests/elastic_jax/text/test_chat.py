"""Conversations in templates of all kinds: failing ones, ones without system role, with dates and with reasoning."""

from __future__ import annotations

import logging

import pytest
from chat_tokenizers import CHATML, LLAMA, chat_tokenizer
from transformers import PreTrainedTokenizerFast

from elastic_jax.errors import DataError
from elastic_jax.text.chat import answered_texts, chat_text, fix_date, template_date

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q?"}]
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
SILENT = "{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}"
THINKER = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<a>{% set parts = m.content.split('</think>') %}"
    "{% if parts | length > 1 %}<think>{{ parts[0].replace('<think>', '') }}</think>{{ parts[1] }}"
    "{% else %}<think></think>{{ m.content }}{% endif %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% if enable_thinking is defined and not enable_thinking %}<think></think>"
    "{% endif %}{% endif %}"
)


def with_template(template: object) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer().backend_tokenizer, name_or_path="models/m")
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}", "line 1"),
        ("{{ raise_exception('Roles must\nalternate') }}", "Roles must alternate"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 / 0 }}", "division"),
        ("{{ messages.append }}{{ 'a' + 1 }}", "str"),
        ({"tool_use": "x", "rag": "y"}, r"several chat templates \(rag, tool_use\)"),
        ("", "no chat template"),
    ],
)
def test_a_failing_template_is_one_line_that_names_it(template: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        chat_text(with_template(template), TURNS)
    assert "\n" not in str(caught.value)
    if template:
        assert "models/m" in str(caught.value)
    if isinstance(template, str) and template:
        assert "system, user" in str(caught.value)


def test_the_default_of_named_templates_is_taken() -> None:
    assert chat_text(with_template({"default": SILENT, "rag": "y"}), TURNS[1:]).text == "[q?]"


@pytest.mark.parametrize("template", [NO_SYSTEM + SILENT, SILENT], ids=["refuses", "leaves out"])
def test_without_system_role_the_user_message_begins_with_it(template: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = with_template(template)
    tokenizer.name_or_path = f"models/{len(template)}"
    with caplog.at_level(logging.WARNING):
        assert chat_text(tokenizer, TURNS).text == "[Be brief.\n\nq?]"
        assert chat_text(tokenizer, TURNS[:1]).text == "[Be brief.]"
    assert sum("has no system role" in record.message for record in caplog.records) == 1
    assert "Be brief.<|im_end|>" in chat_text(chat_tokenizer(CHATML), TURNS).text


def test_the_date_of_a_template_can_be_kept() -> None:
    tokenizer = with_template("{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}")
    assert template_date(chat_tokenizer(LLAMA)) is None
    fix_date(tokenizer, "2024-07-26")
    assert template_date(tokenizer) == "2024-07-26"
    assert chat_text(tokenizer, TURNS[1:]).text == "26 Jul 2024q?"
    with pytest.raises(DataError, match="YYYY-MM-DD"):
        fix_date(tokenizer, "yesterday")


def test_reasoning_is_part_of_an_answer() -> None:
    tokenizer = with_template(THINKER)
    prompt, wholes = answered_texts(tokenizer, TURNS[1:], ["<think>Hm.</think>Yes.", "No."])
    assert prompt.text == "q?<a>"
    assert [whole.after(prompt).text for whole in wholes] == ["<think>Hm.</think>Yes.", "<think></think>No."]
    prompt, _ = answered_texts(tokenizer, TURNS[1:], ["No."])
    assert prompt.text == "q?<a><think></think>"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}[{{ m.content.split('</think>')[-1] }}]{% endfor %}", "reasoning"),
        ("{{ messages[-1].content }}", "does not continue"),
    ],
)
def test_answers_that_a_template_changes_are_refused(template: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        answered_texts(with_template(template), TURNS[1:], ["<think>Hm.</think>Yes."])

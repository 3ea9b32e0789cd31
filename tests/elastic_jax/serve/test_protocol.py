"""What a body may hold."""

import json

import pytest
from chat_tokenizers import chat_tokenizer

from elastic_jax.sampling import Sampling
from elastic_jax.serve.fields import Refused
from elastic_jax.serve.protocol import read_question

TEXT = {"model": "m", "prompt": "Hello"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def read(body, chat):
    return read_question(json.dumps(body).encode(), chat_tokenizer(), chat=chat, model="m", most_answers=4)


def test_what_is_not_given_is_as_in_openai():
    text, chat = read(TEXT | {"seed": None, "user": "me"}, False), read(CHAT, True)
    assert text.sampling == chat.sampling == Sampling(1.0)
    assert (text.max_tokens, chat.max_tokens, text.answers, text.stops, text.top_logprobs) == (16, None, 1, (), None)
    assert not (text.stream or text.usage_in_stream)


def test_every_field_is_read():
    chosen = {"n": 2, "stop": "x", "seed": -1, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "stream": True}
    chosen |= {"stream_options": {"include_usage": True}, "presence_penalty": 0, "tools": []}
    chat = read(CHAT | chosen | {"max_completion_tokens": 7, "logprobs": True, "top_logprobs": 4}, True)
    text = read(TEXT | chosen | {"prompt": [[1, 2], [3]], "max_tokens": 7, "logprobs": 4}, False)
    assert text.prompts == [[1, 2], [3]]
    for question in (chat, text):
        assert question.sampling == Sampling(0.5, 3, 0.5) and question.seed == 2**31 - 1
        assert (question.answers, question.max_tokens, question.stops, question.top_logprobs) == (2, 7, ("x",), 4)
        assert question.stream and question.usage_in_stream


def test_messages_become_the_text_of_the_template():
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "you<|im_end|>"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    (prompt,) = read(CHAT | {"messages": messages}, True).prompts
    want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello you<|im_end|><|im_end|>\n"
    want += "<|im_start|>assistant\n"
    assert chat_tokenizer().decode(prompt) == want
    assert prompt.count(chat_tokenizer().eos_token_id) == 2, "what a message spells is text"


@pytest.mark.parametrize(
    ("chat", "wrong", "message"),
    [
        (False, {"model": None}, "model is missing"),
        (False, {"temperatures": 1}, "no field 'temperatures'. Did you mean 'temperature'"),
        (False, {"temperature": 3}, "temperature is 3; want a number from 0 to 2"),
        (False, {"temperature": True}, "temperature is True"),
        (False, {"temperature": float("nan")}, "temperature is nan"),
        (False, {"top_p": 0}, "want a probability"),
        (False, {"n": 1.0}, "n is 1.0; want a whole number from 1 to 4"),
        (False, {"n": 3, "prompt": ["a", "b"]}, "2 prompts with 3 answers each; want 4 answers at most"),
        (False, {"prompt": []}, "prompt is"),
        (False, {"prompt": ""}, "prompt is ''"),
        (False, {"prompt": [1, "a"]}, "want a text, a list of texts"),
        (False, {"prompt": [True]}, "want a text, a list of texts"),
        (False, {"max_tokens": 0}, "max_tokens is 0"),
        (False, {"stream": "yes"}, "stream is 'yes'; want true or false"),
        (False, {"stream_options": {"include_usage": 1}}, "stream_options is"),
        (False, {"stop": [""]}, "want strings of one character or more"),
        (False, {"stop": 3}, "want a string or a list"),
        (False, {"echo": True}, "does not support it"),
        (False, {"logprobs": 21}, "logprobs is 21"),
        (False, {"best_of": 2}, "best_of is 2"),
        (True, {"messages": []}, "want a list of one message or more"),
        (True, {"messages": ["Hello"]}, "messages[0] is 'Hello'; want an object"),
        (True, {"messages": [{"role": "tool", "content": "x"}]}, "want one of the roles"),
        (True, {"messages": [{"role": "user"}]}, "want a text"),
        (True, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts of type text"),
        (True, {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "no tool_calls"),
        (True, {"messages": [*CHAT["messages"], {"role": "assistant", "content": "x"}]}, "want one that it can answer"),
        (True, {"top_logprobs": 2}, '"logprobs": true'),
        (True, {"response_format": {"type": "json_object"}}, "does not support it"),
    ],
)
def test_what_is_wrong_is_named(chat, wrong, message):
    with pytest.raises(Refused) as refused:
        read((CHAT if chat else TEXT) | wrong, chat)
    assert refused.value.status == 400 and message in str(refused.value)


@pytest.mark.parametrize("body", [[], "text", None, 3])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(Refused, match="want a JSON object"):
        read(body, False)

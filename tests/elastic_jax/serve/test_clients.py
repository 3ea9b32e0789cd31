"""The official client of OpenAI and our own evaluation against the server."""

import pytest

from eval.harness.backends.endpoint import EndpointBackend, EndpointConfig
from eval.samples import ENDPOINT_ARM, Message, Prompt, Sample


@pytest.mark.parametrize("chat", [True, False])
def test_the_evaluation_of_endpoints(server, chat, monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", server.key)
    config = EndpointConfig(server.url, "tiny", chat=chat, concurrency=3, key_variable="KEY_OF_TEST", retries=0)
    texts = [f"Question {i}?" for i in range(5)]
    prompts = [Prompt(Sample(text, {}), [1], max_new_tokens=6, messages=(Message.of("user", text),)) for text in texts]
    replies = list(EndpointBackend(config).run("generate", prompts, ENDPOINT_ARM, batch_tokens=100, most_rows=2))
    assert len(replies) == 5
    for prompt, reply in replies:
        assert reply.error is None
        text = prompt.messages[0].text
        options = {"max_tokens": 6, "temperature": 0}
        if chat:
            wanted = server.chat(text, **options)["choices"][0]["message"]["content"]
        else:
            wanted = server.complete(text, **options)["choices"][0]["text"]
        assert reply.text == wanted and reply.new_tokens <= 6


@pytest.mark.filterwarnings("ignore")
class TestOfficialClient:
    @pytest.fixture
    def client(self, server):
        openai = pytest.importorskip("openai")
        with openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0) as client:
            yield client

    def test_chat_with_log_probabilities_and_two_answers(self, server, client):
        reply = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hello"}],
            n=2,
            seed=3,
            max_tokens=5,
            logprobs=True,
            top_logprobs=2,
        )
        assert [choice.index for choice in reply.choices] == [0, 1]
        for choice, seed in zip(reply.choices, (3, 4), strict=True):
            wanted = server.chat("Hello", seed=seed, max_tokens=5)["choices"][0]["message"]["content"]
            assert choice.message.content == wanted
            assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
        assert reply.usage.prompt_tokens_details.cached_tokens is not None

    def test_streams(self, server, client):
        whole = server.complete("Hello", seed=1, max_tokens=8)["choices"][0]["text"]
        stream = client.completions.create(model="tiny", prompt="Hello", seed=1, max_tokens=8, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == whole
        chat = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Hello"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        *_, last = chat
        assert last.usage.completion_tokens > 0

    def test_errors_have_their_class(self, server, client):
        import openai

        assert [model.id for model in client.models.list()] == ["tiny"]
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
            client.completions.create(model="gpt", prompt="x")
        with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
            client.completions.create(model="tiny", prompt="x", max_tokens=0)
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()

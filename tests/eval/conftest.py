from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random model with routers and a tokenizer, as a directory."""
    from tiny import tiny_model
    from tiny_text import VOCAB, tiny_tokenizer

    from elastic_jax import save_pretrained  # all of these start jax, which many tests do without

    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    save_pretrained(tiny_model(vocab_size=VOCAB), folder, format="elastic")
    tiny_tokenizer().save_pretrained(folder)
    return folder

import numpy as np
import pytest
from chat_tokenizers import LLAMA, chat_tokenizer
from tiny_text import tiny_tokenizer

from elastic_jax.errors import DataError
from train.data.corpus import Corpus, from_standard_library
from train.heads.samples import HELD_OUT, SCORED, Batches, Samples
from train.heads.settings import HeadsDataConfig


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    whole = from_standard_library()
    return Corpus(whole.prose[:6], whole.code[:6], ())


def samples(corpus, tokenizer, **data) -> Samples:
    options = {"kinds": ("needles",), "min_tokens": 1024, "max_tokens": 2048, "questions": 3, **data}
    return Samples(corpus, tokenizer, HeadsDataConfig(**options), seed=0)


def scored_text(tokenizer, batch, row=0) -> list[str]:
    """The scored tokens as text, one for each run of neighbouring ones."""
    used = batch.positions[row][batch.weights[row] > 0] + 1
    runs = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
    return [tokenizer.decode(batch.input_ids[row][run]).strip() for run in runs]


@pytest.mark.parametrize("template", [None, "chatml", LLAMA], ids=["raw", "chatml", "llama"])
def test_just_the_answers_are_scored(corpus, template):
    tokenizer = tiny_tokenizer() if template is None else chat_tokenizer(*([template] if template == LLAMA else []))
    made = samples(corpus, tokenizer, chat_share=1.0)
    batch = made.batch(0, 2, 1024)
    for row in range(2):
        whole = tokenizer.decode(batch.input_ids[row][: batch.lengths[row]])
        answers = scored_text(tokenizer, batch, row)
        assert len(answers) == 3
        for answer in answers:
            assert whole.count(answer) >= 2  # in the text, and at the end
            assert f"{answer}." in whole
        assert ("Question:" in whole) == (template is None)


def test_text_before_the_first_token_of_a_begin_token_counts_it(corpus):
    tokenizer = chat_tokenizer(LLAMA)
    batch = samples(corpus, tokenizer, chat_share=0.0).batch(0, 1, 1024)
    assert batch.input_ids[0, 0] == tokenizer.bos_token_id
    assert len(scored_text(tokenizer, batch)) == 3


@pytest.mark.parametrize("kind", ["pairs", "chains", "labels", "code_needles", "prose", "code"])
def test_samples_of_every_kind_fit_their_length(corpus, tokenizer, kind):
    batch = samples(corpus, tokenizer, kinds=(kind,)).batch(3, 1, 1024)
    assert batch.input_ids.shape == (1, 1024) and batch.positions.shape == (1, SCORED)
    assert 700 < batch.lengths[0] <= 1024
    used = batch.positions[0][batch.weights[0] > 0]
    assert 0 < len(used) <= SCORED and 0 <= used.min() and used.max() < batch.lengths[0] - 1


def test_a_sample_follows_from_seed_side_number_and_length(corpus, tokenizer):
    made, again = samples(corpus, tokenizer), samples(corpus, tokenizer)
    assert np.array_equal(made.batch(4, 1, 1024).input_ids, again.batch(4, 1, 1024).input_ids)
    others = [made.batch(5, 1, 1024), made.batch(4, 1, 1024, HELD_OUT)]
    assert not any(np.array_equal(made.batch(4, 1, 1024).input_ids, other.input_ids) for other in others)
    assert made.digest() == again.digest()


def test_the_digest_sees_a_changed_text(corpus, tokenizer):
    changed = Corpus(corpus.prose[1:], corpus.code, ())
    assert samples(changed, tokenizer).digest() != samples(corpus, tokenizer).digest()


def test_short_samples_come_first_then_longer_ones_with_every_kind(corpus, tokenizer):
    made = samples(corpus, tokenizer, kinds=("needles", "prose"), max_tokens=1536, lengths=3)
    sizes = HeadsDataConfig(min_tokens=1024, max_tokens=1536, lengths=3).sizes
    stream = Batches(made, sizes, rows=1, steps=10)
    lengths = [next(stream).input_ids.shape[1] for _ in range(10)]
    assert sizes == (1024, 1280, 1536)
    assert lengths == [1024] * 4 + [1280, 1536] * 3


def test_a_stream_goes_on_where_it_was(corpus, tokenizer):
    def fresh() -> Batches:
        return Batches(samples(corpus, tokenizer), (1024,), rows=1, steps=6)

    first = fresh()
    kept = [next(first) for _ in range(2)] and first.get_state()
    want = next(first)
    later = fresh()
    later.set_state(kept)
    assert np.array_equal(next(later).input_ids, want.input_ids)


def test_texts_shorter_than_the_samples_are_refused(tokenizer):
    with pytest.raises(DataError, match="prose .* 3000 characters"):
        samples(Corpus((("a few words. " * 300)[:3000],), ("x = 1\n" * 3000,), ()), tokenizer)


def test_per_task_samples_name_their_gates(corpus, tokenizer):
    data = HeadsDataConfig(kinds=("needles", "prose", "code"), min_tokens=1024, max_tokens=1024)
    made = Samples(corpus, tokenizer, data, seed=0, per_task=True)
    assert [int(made.batch(number, 1, 1024).group) for number in range(3)] == [0, 1, 2]

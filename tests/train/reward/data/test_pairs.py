import numpy as np
import pytest
from chat_tokenizers import chat_tokenizer

from elastic_jax.errors import DataError
from train.reward.data.pairs import PairSample, pair_batches, pair_pipeline
from train.reward.data.samples import pair_samples
from train.reward.examples.generate import records

SHAPES = dict(prompt_length=40, response_length=12, rejects=2)


def random_samples(count, seed=0):
    rng = np.random.default_rng(seed)

    def ids(most):
        return rng.integers(1, 1000, rng.integers(1, most + 1)).astype(np.int32)

    return [
        PairSample(ids(40), tuple(ids(12) for _ in range(rng.integers(2, 5))), float(index)) for index in range(count)
    ]


def pipeline(samples, **changes):
    return pair_pipeline(samples, **(SHAPES | dict(rows=2, accumulate=3, seed=5) | changes))


def unpadded(batch):
    """(margin, prompt, responses) of every row."""
    flat = [np.reshape(field, (batch.margin.size, *field.shape[batch.margin.ndim :])) for field in batch]
    for prompt, size, responses, sizes, margin in zip(*flat, strict=True):
        assert not prompt[size:].any()
        assert all(not response[length:].any() for response, length in zip(responses, sizes, strict=True))
        yield float(margin), prompt[:size].tolist(), [r[:n].tolist() for r, n in zip(responses, sizes, strict=True)]


def expected(sample, rejects=2):
    responses = [ids.tolist() for ids in sample.response_ids[: 1 + rejects]]
    return sample.margin, sample.prompt_ids.tolist(), responses + [[]] * (1 + rejects - len(responses))


def test_batches_have_static_shapes_and_hold_every_sample_once_an_epoch():
    samples = random_samples(24)
    stream = iter(pipeline(samples))
    epochs = []
    for _ in range(2):
        rows = []
        for _ in range(4):
            batch = next(stream)
            assert batch.prompt_ids.shape == (3, 2, 40) and batch.response_ids.shape == (3, 2, 3, 12)
            assert batch.prompt_lengths.shape == (3, 2) and batch.response_lengths.shape == (3, 2, 3)
            assert batch.margin.dtype == np.float32 and batch.prompt_ids.dtype == np.int32
            rows += list(unpadded(batch))
        assert sorted(rows) == [expected(sample) for sample in samples]
        epochs.append(rows)
    assert epochs[0] != epochs[1]


def test_a_restored_stream_goes_on_where_it_was_from_every_position():
    samples = random_samples(7)  # batches of 6 lie across the borders of epochs
    whole = iter(pipeline(samples))
    states, batches = [], []
    for _ in range(9):
        states.append(whole.get_state())
        batches.append(next(whole))
    for position, state in enumerate(states):
        resumed = iter(pipeline(samples))
        resumed.set_state(state)
        for want in batches[position:]:
            for got, field in zip(next(resumed), want, strict=True):
                np.testing.assert_array_equal(got, field)


def test_evaluation_batches_hold_all_samples_in_order_and_repeat_the_last():
    samples = random_samples(5)
    batches = pair_batches(samples, rows=2, **SHAPES)
    assert [real for _, real in batches] == [2, 2, 1]
    rows = [row for batch, _ in batches for row in unpadded(batch)]
    assert rows == [expected(sample) for sample in [*samples, samples[-1]]]


def test_generated_records_reach_the_batch():
    samples, _ = pair_samples(records(8, 0, rejects=3), chat_tokenizer(), prompt_length=1024, response_length=128)
    made = pair_pipeline(samples, prompt_length=1024, response_length=128, rejects=2, rows=4, accumulate=1, seed=0)
    batch = next(iter(made))
    assert (batch.response_lengths > 2).all() and batch.response_ids.shape == (1, 4, 3, 128)


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="data set is empty"):
        pipeline([])
    with pytest.raises(DataError, match="comparison 0 has .* a row holds 3 and 12"):
        pipeline(random_samples(3), prompt_length=3)

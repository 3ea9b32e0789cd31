import numpy as np
import pytest
from grain.experimental import LimitIterDataset, assert_equal_output_after_checkpoint
from tiny_text import tiny_tokenizer

from elastic_jax.config import RouterConfig
from elastic_jax.errors import DataError
from train.config import DataConfig, RouterTrainConfig, TaskConfig, TasksConfig
from train.data.packing import RowShape, Sample, tokenise
from train.data.pipeline import RowPlan, make_pipeline
from train.data.records import CODE, SINGLE_QA, Record
from train.data.templates import render

TASK_SETTINGS = TasksConfig(single_qa=TaskConfig(loss_weight=2.0))
QA = Record("Ada lives in Rome. " * 4, "Where does Ada live?", "In Rome.", SINGLE_QA, is_prefix=False)
PROGRAM = Record("def f(x):\n    return x\n", "", "\ndef g(x):\n    return f(x)\n", CODE)


def config(**changes) -> RouterTrainConfig:
    data = {"template": "raw", "row_length": 512, "weighting": "tokens"} | changes
    return RouterTrainConfig(router=RouterConfig(block_size=16), tasks=TASK_SETTINGS, data=DataConfig(**data))


def one_sample(record, **changes):
    return tokenise([record], tiny_tokenizer(), config(**changes))[0]


def test_labels_are_the_next_tokens_and_the_last_has_none():
    sample = one_sample(PROGRAM)
    np.testing.assert_array_equal(sample.labels[:-1], sample.input_ids[1:])
    assert (sample.weights[:-1] == 1).all() and sample.weights[-1] == 0


def test_answer_only_loss_learns_exactly_the_answer():
    sample = one_sample(QA)
    learnt = sample.labels[sample.weights > 0]
    assert tiny_tokenizer().decode(learnt) == " In Rome."
    assert set(sample.weights[sample.weights > 0]) == {2.0}
    assert sample.prompt_lengths[0] + len(learnt) == len(sample.input_ids)


def test_samples_count_alike_if_asked():
    for record, weight in ((QA, 2.0), (PROGRAM, 1.0)):
        np.testing.assert_allclose(one_sample(record, weighting="samples").weights.sum(), weight, rtol=1e-6)


def test_the_question_stands_where_the_record_says():
    before = Record(QA.context, QA.question, QA.answer, SINGLE_QA, is_prefix=True)
    texts = [tiny_tokenizer().decode(one_sample(record).input_ids) for record in (QA, before)]
    assert [text.index("Where does") < text.index("Ada lives") for text in texts] == [False, True]


def test_chat_prompt_is_the_one_of_inference():
    tokenizer = tiny_tokenizer().__class__(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    sample = tokenise([QA], tokenizer, config(template="chat"))[0]
    prompt = tokenizer.decode(sample.input_ids[: sample.prompt_lengths[0]])
    assert prompt.startswith("<user>Ada") and prompt.endswith("live?</><assistant>")
    assert tokenizer.decode(sample.input_ids[sample.prompt_lengths[0] :]) == "In Rome.</>"
    mixed = tokenise([QA] * 3, tokenizer, config(template="mixed"))
    for got, wanted in zip(mixed, (sample, one_sample(QA), sample), strict=True):
        np.testing.assert_array_equal(got.input_ids, wanted.input_ids)
    alone = [ids for part in render(QA, "mixed", tokenizer) for ids in part]
    np.testing.assert_array_equal(alone, sample.input_ids)


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="record 0 .Single QA. has .* tokens; a row holds 16"):
        one_sample(QA, row_length=16)
    with pytest.raises(DataError, match="empty"):
        tokenise([], tiny_tokenizer(), config())
    with pytest.raises(DataError, match="no chat template"):
        one_sample(QA, template="chat")


def random_samples(count, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for index in range(count):
        size = int(rng.integers(1, 65))
        ids = rng.integers(1, 1000, size).astype(np.int32)
        samples.append(Sample(ids, ids + 1, np.ones(size, np.float32), np.array([size]), np.array([index % 5])))
    return samples


def pipeline(samples, **changes):
    return make_pipeline(samples, RowShape(64, 16, 3), **({"rows": 1, "accumulate": 2, "seed": 3} | changes))


def segments_of(batch):
    """(task, tokens) of every packed sample, with the block where it starts."""
    T, M = batch.input_ids.shape[-1], batch.task_ids.shape[-1]
    rows = batch.input_ids.reshape(-1, T), batch.segment_ids.reshape(-1, T), batch.task_ids.reshape(-1, M)
    for ids, segments, tasks in zip(*rows, strict=True):
        for number in range(1, segments.max() + 1):
            places = np.flatnonzero(segments == number)
            assert (np.diff(places) == 1).all()
            yield int(tasks[number - 1]), tuple(ids[places].tolist()), int(places[0])


def identity(samples):
    return sorted((int(s.task_ids[0]), tuple(s.input_ids.tolist())) for s in samples)


def test_every_epoch_of_best_fit_shows_every_sample_once_whole_and_from_a_block_on():
    samples = random_samples(40)
    sizes = [-(-len(sample.input_ids) // 16) for sample in samples]
    rows = len(RowPlan(sizes, capacity=4, max_segments=3, seed=3))
    stream = iter(pipeline(samples, accumulate=1))
    epochs = []
    for _ in range(3):
        seen = [found for _ in range(rows) for found in segments_of(next(stream))]
        assert all(start % 16 == 0 for _, _, start in seen)
        assert sorted((task, ids) for task, ids, _ in seen) == identity(samples)
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_first_fit_splits_nothing_and_loses_nothing():
    samples = random_samples(40)
    stream, seen = iter(pipeline(samples, packing="first_fit")), []
    while len(seen) < 2 * len(samples):
        for task, ids, start in segments_of(next(stream)):
            assert start % 16 == 0
            seen.append((task, ids))
    assert set(seen) == set(identity(samples))


def test_which_samples_share_a_row_changes_with_the_epoch():
    plan = RowPlan([2] * 40, capacity=4, max_segments=3, seed=0)
    rows = [{frozenset(plan.samples(row, epoch)) for row in range(len(plan))} for epoch in (0, 1)]
    assert len(plan) == 20 and rows[0] != rows[1]


@pytest.mark.parametrize("max_segments, rows", [(8, 1), (2, 4)])
def test_a_row_takes_no_more_samples_than_it_may(max_segments, rows):
    assert len(RowPlan([1] * 8, capacity=8, max_segments=max_segments, seed=0)) == rows


def test_batches_have_static_shapes_and_marked_padding():
    batch = next(iter(pipeline(random_samples(20), rows=2, accumulate=3)))
    assert batch.input_ids.shape == batch.weights.shape == (3, 2, 64) and batch.task_ids.shape == (3, 2, 3)
    present = batch.segment_ids.max(-1)[..., None] > np.arange(3)
    assert ((batch.task_ids >= 0) == present).all() and ((batch.prompt_lengths > 0) == present).all()
    assert (batch.weights[batch.segment_ids == 0] == 0).all()
    assert (batch.labels[batch.weights > 0] == batch.input_ids[batch.weights > 0] + 1).all()


@pytest.mark.parametrize("packing", ["best_fit", "first_fit"])
def test_a_stream_restored_at_any_position_goes_on_where_it_was(packing):
    assert_equal_output_after_checkpoint(LimitIterDataset(pipeline(random_samples(12), packing=packing), 14))


def test_rows_of_the_demonstrations_lengths_are_full():
    """Of the blocks of an epoch's rows, at the default settings; a sample's last block counts whole."""
    data = DataConfig()
    lengths = np.exp(np.random.default_rng(0).uniform(*np.log([data.min_tokens, data.max_tokens]), 1000))
    blocks = np.ceil(lengths / 128).astype(int)
    plan = RowPlan(blocks, capacity=data.row_length // 128, max_segments=data.max_segments, seed=0)
    assert blocks.sum() / (len(plan) * data.row_length // 128) >= 0.95

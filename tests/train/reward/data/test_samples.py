import numpy as np
import pytest
from chat_tokenizers import CHATML, LLAMA, chat_tokenizer
from tiny_text import tiny_tokenizer

from elastic_jax.errors import DataError
from eval import samples as eval_samples
from eval.harness.encoding import Encoder
from eval.samples import Rendered
from train.reward.data.records import JudgeRecord, PreferenceRecord, conversation
from train.reward.data.samples import judge_samples, pair_samples
from train.reward.data.tokens import encode
from train.reward.examples.generate import records

RECORDS = records(6, 0, rejects=2)
PLAIN = PreferenceRecord(conversation(("system", "Be kind."), ("user", "Where is the key?")), "In the box.", ("No.",))


def samples_of(made, tokenizer, prompt_length=4096, response_length=512, rejects=None):
    return pair_samples(made, tokenizer, prompt_length=prompt_length, response_length=response_length, rejects=rejects)


@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["chatml", "llama"])
@pytest.mark.parametrize("first", ["", "\n", "\n\n", " "])
def test_prompt_and_response_are_the_whole_conversation(template, first):
    tokenizer = chat_tokenizer(template)
    answers = (f"{first}In the box.", f"{first}No.")
    record = PreferenceRecord(PLAIN.prompt, answers[0], answers[1:])
    (sample,), _ = samples_of([record], tokenizer)
    for answer, ids in zip(answers, sample.response_ids, strict=True):
        turns = [*(m.to_json() for m in record.prompt), {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert np.concatenate([sample.prompt_ids, ids]).tolist() == whole
        assert len(ids) > 1


def test_training_sees_the_tokens_that_evaluation_scores():
    tokenizer = chat_tokenizer()
    (sample,), _ = samples_of([PLAIN], tokenizer)
    turns = [*((message.role, message.content) for message in PLAIN.prompt), ("assistant", PLAIN.chosen)]
    rendered = Rendered(tuple(eval_samples.Message.of(role, content) for role, content in turns))
    scored = Encoder(tokenizer, chat=True).encode(rendered)
    assert np.concatenate([sample.prompt_ids, sample.response_ids[0]]).tolist() == scored


def test_a_token_over_the_border_belongs_to_the_answers():
    """One answer's first word is a token with the newlines before it; both answers then share the shorter prompt."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(chat_tokenizer(LLAMA).backend_tokenizer.to_str())
    inner.add_tokens([AddedToken("\n\nIn", normalized=False)])
    template = LLAMA.replace(" | trim", "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|begin|>", chat_template=template)
    encoded = encode(tokenizer, PLAIN.prompt, ("In the box.", "No."), None)
    alone = encode(tokenizer, PLAIN.prompt, ("No.",), None)
    assert tokenizer.decode(encoded.answer_ids[0]).startswith("\n\nIn")
    assert tokenizer.decode(encoded.answer_ids[1]).startswith("\n\nNo")
    assert len(encoded.prompt_ids) < len(alone.prompt_ids)


def test_exactly_one_beginning_of_text():
    tokenizer = chat_tokenizer(LLAMA)
    (sample,), _ = samples_of([PLAIN], tokenizer)
    assert (sample.prompt_ids == tokenizer.bos_token_id).sum() == 1 and sample.prompt_ids[0] == tokenizer.bos_token_id
    assert all(tokenizer.bos_token_id not in ids for ids in sample.response_ids)
    doubled = tokenizer.__class__(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<|begin|>")
    doubled.chat_template = "{{ bos_token }}" + LLAMA
    (again,), _ = samples_of([PLAIN], doubled)
    np.testing.assert_array_equal(again.prompt_ids, sample.prompt_ids)


def test_templates_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="no chat template"):
        samples_of([PLAIN], tiny_tokenizer())
    other = chat_tokenizer().__class__(tokenizer_object=chat_tokenizer().backend_tokenizer)
    other.chat_template = "{{ messages | length }}{% if add_generation_prompt %}!{% endif %}"
    with pytest.raises(DataError, match="does not continue its own prompt"):
        samples_of([PLAIN], other)


@pytest.mark.parametrize("template", [CHATML, LLAMA], ids=["chatml", "llama"])
def test_long_prompts_lose_the_middle_of_their_context_only(template):
    tokenizer = chat_tokenizer(template)
    whole, _ = samples_of(RECORDS, tokenizer)
    limit = min(len(sample.prompt_ids) for sample in whole) - 60
    cut, tally = samples_of(RECORDS, tokenizer, prompt_length=limit)
    assert tally.cut == len(RECORDS)
    assert tally.cut_tokens == sum(len(sample.prompt_ids) - limit for sample in whole)
    for record, before, after in zip(RECORDS, whole, cut, strict=True):
        assert len(after.prompt_ids) == limit
        text = tokenizer.decode(after.prompt_ids)
        assert text.endswith(tokenizer.decode(before.prompt_ids).split("\n\nQuestion:")[1])
        left, right = text.split("\n\nQuestion:")[0][-40:], record.context[:40]
        assert record.context.endswith(left) and right in text
        for one, other in zip(before.response_ids, after.response_ids, strict=True):
            np.testing.assert_array_equal(one, other)


def test_without_a_named_context_the_longest_message_is_cut():
    record = PreferenceRecord(PLAIN.prompt[:1] + conversation(("user", "word " * 100)), "a", ("b",))
    tokenizer = chat_tokenizer()
    (whole,), _ = samples_of([record], tokenizer)
    (cut,), _ = samples_of([record], tokenizer, prompt_length=80)
    assert tokenizer.decode(cut.prompt_ids).count("word") < tokenizer.decode(whole.prompt_ids).count("word")
    assert "Be kind." in tokenizer.decode(cut.prompt_ids)


def test_what_cannot_fit_is_left_out_and_counted():
    tokenizer = chat_tokenizer()
    long_chosen = PreferenceRecord(PLAIN.prompt, "very " * 200, ("No.",))
    long_rejected = PreferenceRecord(PLAIN.prompt, "Yes.", ("very " * 200, "No."), kinds=("long", "short"))
    only_long = PreferenceRecord(PLAIN.prompt, "Yes.", ("very " * 200,))
    kept, tally = samples_of([long_chosen, PLAIN, long_rejected, only_long], tokenizer, response_length=32)
    assert len(kept) == tally.kept == 2 and kept[1].kinds == ("short",) and len(kept[1].response_ids) == 2
    assert tally.skipped == {
        "the chosen answer has more than 32 tokens": 1,
        "a rejected answer has more than 32 tokens": 2,
        "no rejected answer is short enough": 1,
    }
    with pytest.raises(DataError, match="No record fits the row(.|\n)*even without its context"):
        samples_of([PLAIN], tokenizer, prompt_length=8)


def test_rejected_answers_that_batches_do_not_hold_are_counted():
    several = PreferenceRecord(PLAIN.prompt, "Yes.", ("No.", "Never.", "Perhaps."))
    [kept, _], tally = samples_of([several, PLAIN], chat_tokenizer(), rejects=1)
    assert tally.skipped == {"more than 1 rejected answers": 2}
    assert len(kept.response_ids) == 4, "what a run that goes on compares"


def test_judge_samples_learn_the_answer_only():
    tokenizer = chat_tokenizer()
    record = JudgeRecord(RECORDS[0].prompt, "Assistant A is right. [[A]]", RECORDS[0].context)
    (sample,), _ = judge_samples([record], tokenizer, row_length=4096)
    assert tokenizer.decode(sample.labels[sample.weights > 0]) == "Assistant A is right. [[A]]<|im_end|>\n"
    assert tokenizer.decode(sample.input_ids[: sample.prompt_lengths[0]]).endswith("<|im_start|>assistant\n")
    (cut,), tally = judge_samples([record], tokenizer, row_length=len(sample.input_ids) - 50)
    assert tally.cut_tokens == 50 and len(cut.input_ids) == len(sample.input_ids) - 50
    assert tokenizer.decode(cut.labels[cut.weights > 0]) == "Assistant A is right. [[A]]<|im_end|>\n"
    with pytest.raises(DataError, match="leaves no room"):
        judge_samples([record], tokenizer, row_length=8)

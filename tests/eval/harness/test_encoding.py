import pytest
from chat_tokenizers import chat_tokenizer
from cheap_tokenizer import CheapTokenizer
from hypothesis import given
from hypothesis import strategies as st

from elastic_jax.errors import DataError
from eval.harness.encoding import Encoder, make_prompt, middle_cut
from eval.samples import Message, Rendered, Sample, Segment, Showing, Tokens


@given(st.integers(0, 50), st.integers(0, 50))
def test_the_middle_is_cut_and_both_ends_stay(count, keep):
    ids = list(range(count))
    cut = middle_cut(ids, keep)
    assert len(cut) == min(count, keep)
    head = len(cut) // 2
    assert cut[:head] == ids[:head] and cut[head:] == ids[count - (len(cut) - head) :]


def test_the_published_cut():
    assert middle_cut(range(131_072), 131_067)[65_533] == 65_538


CONTENT = Rendered(
    (
        Message.of("system", "Be brief."),
        Message(
            "user", (Segment("Read: "), Segment("w0 " + " ".join(f"w{i}" for i in range(1, 400)), True), Segment(" Q?"))
        ),
    ),
    "A:",
)


def make(content=CONTENT, policy="context", limit=100, chat=True, new=10):
    sample = Sample("s", {}, max_new_tokens=new)
    return make_prompt(content, Encoder(CheapTokenizer(), chat=chat), policy, limit, sample, Showing())


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("policy", ["middle", "context"])
def test_a_long_prompt_is_cut_to_just_the_limit(policy, chat):
    made = make(policy=policy, chat=chat)
    assert 85 <= len(made.prompt_ids) <= 90
    assert made.cut_tokens == len(make(limit=None, chat=chat).prompt_ids) - len(made.prompt_ids)
    text = made.messages[1].text
    assert text.startswith("Read: w0 w1") and text.endswith("w399 Q?")
    assert made.messages[0].text == "Be brief."


def test_special_tokens_in_a_text_stay_when_it_is_cut():
    tokenizer = chat_tokenizer()
    text = "<|im_end|> " + "the quick brown fox " * 200 + "<|im_end|>"
    content = Rendered((Message("user", (Segment(text, True),)),))
    made = make_prompt(
        content, Encoder(tokenizer, chat=False), "context", 100, Sample("s", {}, max_new_tokens=1), Showing()
    )
    assert made.cut_tokens and made.messages[0].text.count("<|im_end|>") == 2


def test_only_the_part_that_may_be_cut_is_cut():
    tight = make(limit=45, policy="context")
    assert tight.messages[1].segments[0].text == "Read: " and tight.messages[1].segments[2].text == " Q?"
    assert make(limit=16) is None
    whole = Rendered((Message.of("user", "w " * 300),))
    with pytest.raises(DataError, match="no part that may be cut"):
        make(whole)


def test_skipping_leaves_short_prompts_alone():
    assert make(policy="skip") is None
    assert make(policy="skip", limit=1000).cut_tokens == 0


def test_the_beginning_of_the_reply_comes_after_the_template():
    encoder = Encoder(CheapTokenizer(), chat=True)
    text = encoder.tokenizer.decode(make_prompt(CONTENT, encoder, "skip", None, Sample("s", {}), Showing()).prompt_ids)
    assert text.startswith("<system>Be brief.</system><user>Read:") and text.endswith("Q?</user><assistant>A:")
    plain = Rendered(CONTENT.messages, "A:", chat=False)
    text = encoder.tokenizer.decode(make_prompt(plain, encoder, "skip", None, Sample("s", {}), Showing()).prompt_ids)
    assert text.startswith("Be brief.\n\nRead:") and text.endswith("Q? A:")


def test_options_and_answers_have_room_too():
    several = Rendered(CONTENT.messages, "A:", options=(" yes", " no indeed"))
    made = make(several, new=0)
    assert [len(option) for option in made.option_ids] == [1, 2]
    assert len(made.prompt_ids) + 2 <= 100
    one = make(Rendered(CONTENT.messages, "A:", options=(" yes",)), new=0)
    assert len(one.continuation_ids) == 1 and one.option_ids == ()


def test_token_ids_pass_unchanged_or_are_skipped():
    assert list(make(Tokens([1, 2, 3], [4])).prompt_ids) == [1, 2, 3]
    assert make(Tokens(range(95), [4]), new=0).continuation_ids == [4]
    assert make(Tokens(range(100), [4]), new=0) is None
    options = ((4,), (5, 6))
    assert make(Tokens(range(98), option_ids=options), new=0).option_ids == options
    assert make(Tokens(range(99), option_ids=options), new=0) is None


def test_chat_without_a_template_is_refused():
    tokenizer = CheapTokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        Encoder(tokenizer, chat=True)

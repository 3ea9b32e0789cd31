import numpy as np
import pytest
from chat_tokenizers import chat_tokenizer

from elastic_jax.errors import ConfigError
from train.data.windows import Windows
from train.reward.synthesis.lengthen import GAP, Chunk, ShortSample, lengthen, short_prompt
from train.reward.synthesis.perspectives import PERSPECTIVES

PROSE = ("One day follows another, and nobody counts them. The river is slow. " * 60,)
CRITICAL = ("The key lies in the blue box. ", "The blue box\nstands in the {cellar}.")


def sample(perspective="faithfulness", *further):
    chunks = (Chunk(CRITICAL[0]), Chunk("The cat is asleep.", critical=False), Chunk(CRITICAL[1]), *further)
    return ShortSample(perspective, "Where is the key?", "In the cellar.", chunks, "In the blue box, in the cellar.")


class Undercounting:
    """Finds a token fewer in a piece alone than the piece has in the whole."""

    chat_template = chat_tokenizer().chat_template
    apply_chat_template = chat_tokenizer().apply_chat_template

    added_tokens_decoder = chat_tokenizer().added_tokens_decoder

    def __call__(self, text, **options):
        ids = chat_tokenizer()(text, **options)["input_ids"]
        return {"input_ids": ids[1:] if options.get("split_special_tokens") else ids}  # pieces are plain texts


def long_prompt(made, seed=0, target=600, reserve=50, piece=60, tokenizer=None):
    rng, windows = np.random.default_rng(seed), Windows(chat_tokenizer())
    return lengthen(
        made,
        lambda tokens: windows.random(PROSE, min(tokens, piece), rng).strip(),
        target_tokens=target,
        reserve=reserve,
        tokenizer=tokenizer or chat_tokenizer(),
        rng=rng,
    )


def tokens_of(prompt):
    turns = [message.to_json() for message in prompt]
    text = chat_tokenizer().apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return len(chat_tokenizer().encode(text, add_special_tokens=False))


@pytest.mark.parametrize("perspective", PERSPECTIVES)
@pytest.mark.parametrize("target", [1000, 1700])
def test_length_is_exact_and_the_critical_text_can_be_recovered(perspective, target):
    made = long_prompt(sample(perspective), target=target)
    assert made.tokens == tokens_of(made.prompt)
    assert target - 50 - 40 < made.tokens <= target - 50
    system, user = made.prompt
    assert f"<context>\n{made.context}\n\n\n</context>\n\n<question>\nWhere is the key?\n</question>" in user.content
    assert "<response>\nIn the cellar.\n</response>" in user.content
    assert tuple(made.context[begin:end] for begin, end in made.places) == CRITICAL
    assert made.places[0][1] <= made.places[1][0] and "The cat is asleep." in made.context
    assert "[Analysis]" in system.content and "[Score: n]" in system.content
    assert "anchors" not in system.content and "<reference>" not in user.content


@pytest.mark.parametrize("tokenizer", [chat_tokenizer(), Undercounting()], ids=["", "undercounting"])
def test_many_small_pieces_do_not_exceed_the_length_together(tokenizer):
    made = long_prompt(sample(), target=2500, piece=17, tokenizer=tokenizer)
    assert 2300 < made.tokens == tokens_of(made.prompt) <= 2450


def test_tagged_passages_stay_together_between_tags_of_their_own():
    tags = set()
    for seed in range(8):
        made = long_prompt(sample("quality"), seed, target=1000)
        passage = f"<{made.tag}>\n{GAP.join(CRITICAL)}\n</{made.tag}>"
        assert made.context.count(passage) == 1
        assert made.insert_index == len(
            [part for part in made.context[: made.context.index(passage)].split(GAP) if part]
        )
        assert f"<{made.tag}>" in made.prompt[0].content and 2 <= len(made.tag) <= 4
        tags.add(made.tag)
    assert len(tags) > 4
    assert long_prompt(sample("helpfulness"), target=1000).tag is None


def test_the_place_is_random_and_follows_from_the_seed():
    made = [long_prompt(sample(), seed, target=1700) for seed in range(12)]
    depths = [one.places[0][0] / len(one.context) for one in made]
    assert min(depths) < 0.2 and max(depths) > 0.5
    assert made[3] == long_prompt(sample(), 3, target=1700)
    assert any(one.places[1][0] - one.places[0][1] > 100 for one in made)


def test_a_chunk_of_the_sample_that_does_not_fit_gives_way_to_filler():
    made = long_prompt(sample("faithfulness", Chunk("never " * 900, critical=False)), target=1000)
    assert 900 < made.tokens <= 950 and "never" not in made.context


def test_what_is_longer_than_the_target_alone_is_not_made():
    assert long_prompt(sample("faithfulness", Chunk("word " * 900)), target=600) is None
    tight = tokens_of(long_prompt(ShortSample("safety", "Q", "A", (Chunk("x"),)), target=2000).prompt)
    assert tight <= 1950
    with pytest.raises(ConfigError, match="leaves nothing"):
        long_prompt(sample(), target=50)


def test_the_short_prompt_has_critical_chunks_rubric_and_reference_only():
    system, user = short_prompt(sample())
    assert f"<context>\n{GAP.join(CRITICAL)}\n\n\n</context>" in user.content and "asleep" not in user.content
    assert "anchors" in system.content and "<reference>\nIn the blue box, in the cellar.\n</reference>" in user.content


def test_perspectives_are_six_and_differ():
    assert len(PERSPECTIVES) == 6
    assert len({short_prompt(sample(name))[0].content for name in PERSPECTIVES}) == 6

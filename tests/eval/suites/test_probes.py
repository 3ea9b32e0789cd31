import bisect
import dataclasses
import functools
import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_text import tiny_haystack, tiny_tokenizer

from elastic_jax.errors import ConfigError, DataError
from elastic_jax.text.split import split_of
from eval.suites import words
from eval.suites.haystack import Haystack, code_texts, prose_texts
from eval.suites.probes import PROBE_TASKS, ProbeConfig, make_probe

CONFIG = ProbeConfig(sink_tokens=64, local_tokens=128)
WORD = re.compile(r"\s*\S+")


@functools.cache
def longest_word() -> int:
    """Tokens of the longest word that probes may be cut before: a line that rules a table off."""
    found = {word for text in prose_texts(None, "evaluation").values() for word in WORD.findall(text)}
    return max(map(len, tiny_tokenizer()(list(found), add_special_tokens=False)["input_ids"]))


def probe(task="passkey", length=700, index=0, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return make_probe(task, length, index, tiny_haystack(), tiny_tokenizer(), config)


@settings(max_examples=30)
@given(st.sampled_from(PROBE_TASKS), st.integers(500, 2500), st.integers(0, 1000), st.integers(0, 3))
def test_a_probe_keeps_its_promises(task, length, index, distractors):
    made = probe(task, length, index, distractors=distractors)
    assert made.prompt.count(made.needle) == 1
    assert made.answer in made.needle
    assert made.needle.strip(".").startswith(made.prompt.rpartition("Answer: ")[2])

    missing = length - len(made.prompt_ids) - len(made.answer_ids)
    assert 0 <= missing < longest_word()
    assert made.needle_start >= CONFIG.sink_tokens
    assert made.needle_end <= made.question_start - CONFIG.local_tokens


def test_an_excerpt_ends_after_the_last_whole_word_that_fits():
    text = "One two three +" + "-+" * 30 + " four five."
    haystack, tokenizer = Haystack({"a": text}, tiny_tokenizer()), tiny_tokenizer()
    found = WORD.findall(text)
    ends = list(itertools.accumulate(map(len, tokenizer(found, add_special_tokens=False)["input_ids"])))
    for room in range(ends[-1]):
        kept = "".join(piece.text for piece in haystack.excerpt(random.Random(0), room))
        assert kept == "".join(found[: bisect.bisect_right(ends, room)])


def test_an_excerpt_without_room_for_every_needle_is_drawn_again():
    made = probe("kv", 699, 87, distractors=2)
    assert made.needle_start >= CONFIG.sink_tokens


@pytest.mark.parametrize("task", PROBE_TASKS)
def test_ids_text_and_positions_agree(task):
    made, tokenizer = probe(task), tiny_tokenizer()
    assert tokenizer.decode(made.prompt_ids) == made.prompt
    assert tokenizer.decode(made.answer_ids) == f" {made.answer}"
    assert tokenizer.decode(made.prompt_ids[made.needle_start : made.needle_end]).strip() == made.needle
    assert tokenizer.decode(made.prompt_ids[made.question_start :]).startswith("\n\nQuestion: ")


def test_the_same_arguments_give_the_same_probe_and_any_other_gives_another():
    assert probe() == probe()
    others = [probe("kv"), probe(length=701), probe(index=1), probe(seed=1), probe(split="train")]
    assert len({probe().prompt, *(other.prompt for other in others)}) == 6


@pytest.mark.parametrize("task", PROBE_TASKS)
def test_subjects_and_answers_keep_to_their_side(task):
    for split in ("train", "evaluation"):
        for index in range(20):
            made = probe(task, index=index, split=split)
            lead = made.prompt.rpartition("Answer: ")[2]
            subject = lead.removeprefix("The pass key of the ").removeprefix("The secret word of ")
            subject = subject.removesuffix(" is").removesuffix(" was born in")
            assert split_of(made.answer) == split_of(subject) == split


def test_needles_are_spread_over_the_whole_allowed_depth():
    starts = [probe(length=1500, index=index).needle_start for index in range(60)]
    low, high = CONFIG.sink_tokens, 1500 - CONFIG.local_tokens
    quarters = {(start - low) * 4 // (high - low) for start in starts}
    assert quarters == {0, 1, 2, 3}


def test_word_lists_have_no_repeats_and_enough_on_the_evaluation_side():
    for name in ("COLOURS", "THINGS", "FIRST_NAMES", "FAMILY_NAMES", "CITIES", "SECRET_WORDS"):
        assert len(set(getattr(words, name))) == len(getattr(words, name))
    for name in ("FIRST_NAMES", "CITIES", "SECRET_WORDS"):
        assert sum(split_of(word) == "evaluation" for word in getattr(words, name)) >= 20


def test_a_budget_without_room_for_a_needle_is_refused():
    with pytest.raises(ConfigError, match="passkey probe of 250 tokens has no place"):
        probe(length=250)


def test_too_little_text_is_refused():
    short = Haystack({"a": "One sentence. Another sentence. A third."}, tiny_tokenizer())
    with pytest.raises(DataError, match="fewer than the"):
        make_probe("kv", 700, 0, short, tiny_tokenizer(), CONFIG)


def test_text_without_sentences_is_refused():
    endless = Haystack({"a": "word " * 3000}, tiny_tokenizer())
    with pytest.raises(DataError, match="in sentences"):
        make_probe("kv", 700, 0, endless, tiny_tokenizer(), CONFIG)


def test_the_splits_of_a_folder_are_disjoint_and_complete(tmp_path):
    names = {f"book_{number}.txt" for number in range(40)}
    for name in names:
        (tmp_path / name).write_text(f"Text of {name}.")
    sides = [set(prose_texts(tmp_path, split)) for split in ("train", "evaluation")]
    assert sides[0] | sides[1] == names
    assert not sides[0] & sides[1]
    assert 2 <= len(sides[1]) <= 20


def test_a_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="No text folder"):
        prose_texts(tmp_path / "nowhere", "evaluation")
    with pytest.raises(DataError, match=r"holds no \*.py file"):
        code_texts(tmp_path, "evaluation")


def test_windows_are_consecutive_tokens_of_one_text():
    texts = prose_texts(None, "evaluation")
    window = tiny_haystack().window(random.Random(3), 200)
    assert len(window) == 200
    assert any(tiny_tokenizer().decode(window[5:-5]) in text for text in texts.values())
    with pytest.raises(DataError, match="10000000 tokens"):
        tiny_haystack().window(random.Random(3), 10_000_000)


def test_the_digest_follows_names_and_contents():
    digests = [Haystack(texts, tiny_tokenizer()).digest() for texts in ({"a": "x"}, {"a": "y"}, {"b": "x"})]
    assert len(set(digests)) == 3
    assert Haystack({"a": "x"}, tiny_tokenizer()).digest() == digests[0]

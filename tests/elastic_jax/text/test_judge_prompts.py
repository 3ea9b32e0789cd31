from elastic_jax.text.judge_prompts import answers_prompt


def test_answers_are_shown_in_labelled_blocks_after_the_question():
    prompt = answers_prompt("What?", ["one", "two", "three"], ranking=True)
    assert prompt.before + prompt.context + prompt.after == (
        "[User Question]\nWhat?\n\n"
        "[The Start of Assistant A's Answer]\none\n[The End of Assistant A's Answer]\n\n"
        "[The Start of Assistant B's Answer]\ntwo\n[The End of Assistant B's Answer]\n\n"
        "[The Start of Assistant C's Answer]\nthree\n[The End of Assistant C's Answer]"
    )
    assert "[[A>B>C]]" in prompt.system and "3 AI assistants" in prompt.system and "[Ranking]" in prompt.system


def test_pairs_are_asked_for_a_tag_and_two_candidates_for_a_ranking():
    pair = answers_prompt("What?", ["one", "two"], ranking=False)
    assert "[[A]]" in pair.system and "[[B]]" in pair.system and ">" not in pair.system
    ranking = answers_prompt("What?", ["one", "two"], ranking=True)
    assert "[[A>B]]" in ranking.system and "[[A]]" not in ranking.system
    assert pair.template != ranking.template


def test_braces_in_texts_are_left_alone():
    assert "{x}" in answers_prompt("What is {x}?", ["{a}", "{b}"], ranking=True).context

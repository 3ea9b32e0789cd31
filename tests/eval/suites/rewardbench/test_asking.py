from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from judge_oracles import long_oracle, memory_oracle
from judge_runs import in_shown_order, judge, random_ranks, run_judge

from elastic_jax.errors import ConfigError
from eval.harness.backends.reward import RewardBackend
from eval.harness.backends.scripted import ScriptedBackend
from eval.report.tables import wilson_interval
from eval.samples import Reply
from eval.suites.rewardbench.asking import judge_groups, official_cut
from eval.suites.rewardbench.items import official_orders
from eval.suites.rewardbench.memory import SETTINGS
from eval.suites.rewardbench.results import biases_of, join_rewards, read_verdicts, summary, swap_of
from eval.suites.rewardbench.run import LONG, MEMORY
from eval.suites.rewardbench.settings import JudgeSettings
from eval.suites.rewardbench.twins import long, memory


def plan_of(suite, mode, **asked):
    return suite.plan(JudgeSettings(mode=mode, **asked))


def count_tokens(text: str) -> int:
    return len(text) // 4


@cache
def long_files():
    return long.make_items(4, (1024,), 0, count_tokens)


@cache
def memory_files():
    return memory.make_items(3, (2048,), 0, count_tokens)


def by_uid(files):
    return {item.uid: item for items in files.values() for item in items}


def judged(files, plan, backend, tmp_path, parser, **options):
    return read_verdicts(by_uid(files), run_judge(files, plan, backend, tmp_path / "journal", **options), parser)


def test_a_coin_scores_one_in_n(tmp_path):
    verdicts = judged(long_files(), plan_of(LONG, "compat"), judge("coin", random_ranks), tmp_path, "official")
    for size in (2, 3, 4):
        alike = [one for one in verdicts if len(one.order) == size]
        figures = summary(alike)
        low, high = figures["interval"]
        assert low <= 1 / size <= high and high - low < 0.4
    of_memory = judged(
        memory_files(), plan_of(MEMORY, "compat"), judge("coin", random_ranks), tmp_path / "m", "strict5"
    )
    low, high = summary(of_memory)["interval"]
    assert (low, high) == wilson_interval(sum(one.match == 1 for one in of_memory), 30) and low <= 0.5 <= high


def test_a_judge_that_always_says_a_scores_the_share_of_best_first(tmp_path):
    files = memory_files()
    verdicts = judged(files, plan_of(MEMORY, "compat"), judge("A", in_shown_order), tmp_path, "strict5")
    best_first = [order == (0, 1) for items in files.values() for _, order in official_orders([2] * len(items))]
    assert summary(verdicts)["match"] == np.mean(best_first)
    assert swap_of(verdicts) is None

    both = judged(files, plan_of(MEMORY, "strict"), judge("A", in_shown_order), tmp_path / "both", "last_tag")
    swap = swap_of(both)
    assert summary(both)["match"] == 0.5 and summary(both)["items"] == 30 and summary(both)["replies"] == 60
    assert swap is not None and (swap["n"], swap["flip_first"], swap["consistency"]) == (30, 30, 0.0)
    assert biases_of(both)["first_position"] == 0.5 and biases_of(both)["accuracy_better_second"] == 0.0


@pytest.mark.parametrize(("orders", "match"), [("best-first", 1.0), ("best-last", 0.0)])
def test_fixed_orders_show_the_bias(orders, match, tmp_path):
    plan = plan_of(MEMORY, "compat", orders=orders)
    assert summary(judged(memory_files(), plan, judge("A", in_shown_order), tmp_path, "strict5"))["match"] == match


def test_records_are_shown_in_the_official_order_whatever_the_limit(tmp_path):
    """A limited run is the beginning of the whole one."""
    plan = plan_of(LONG, "compat")
    whole = run_judge(long_files(), plan, judge("o", long_oracle), tmp_path / "whole")
    first = run_judge(long_files(), plan, judge("o", long_oracle), tmp_path / "first", limit=3)
    shown = {record["uid"]: record["showing"] for record in whole}
    assert len(first) == 3 * 7 + 3 * 5 and all(shown[record["uid"]] == record["showing"] for record in first)
    items = long_files()["Math"]
    orders = official_orders([2] * len(items))
    assert [r["uid"] for r in first if r["task"] == "Math"] == [items[index].uid for index, _ in orders[:3]]
    assert [tuple(r["showing"]["order"]) for r in first if r["task"] == "Math"] == [order for _, order in orders[:3]]


@pytest.mark.parametrize(
    ("reply", "status", "official", "last"),
    [
        (Reply("  \n"), "empty", None, None),
        (Reply("I cannot decide."), "unparsed", None, None),
        (Reply("I will think about", finish="length"), "stopped", None, None),
        (Reply("[[A]] or [[B]]? [[B]]"), "ok", (0, 1), (1, 0)),
    ],
)
def test_replies_without_a_verdict_are_counted_by_kind(reply, status, official, last, tmp_path):
    files = {"Math": long_files()["Math"]}
    records = run_judge(
        files, plan_of(LONG, "compat"), ScriptedBackend("b", lambda prompt: reply), tmp_path / "journal"
    )
    for parser, ranks in (("official", official), ("last", last)):
        verdicts = read_verdicts(by_uid(files), records, parser)
        assert {one.ranks for one in verdicts} == {ranks} and {one.status for one in verdicts} == {status}
        figures = summary(verdicts)
        assert figures["failed"] == ({} if status == "ok" else {status: len(verdicts)})
        assert figures["match"] == 0 or ranks is not None


def test_strict_parsers_refuse_rankings_that_are_not_whole(tmp_path):
    files = {"Cite": [item for item in long_files()["Cite"] if len(item.answers) == 3]}
    records = run_judge(
        files, plan_of(LONG, "strict"), ScriptedBackend("b", lambda p: "[[A>B>C>D]]"), tmp_path / "journal"
    )
    strict, official = (summary(read_verdicts(by_uid(files), records, parser)) for parser in ("last", "official"))
    assert strict["failed"] == {"unparsed": 2 * len(files["Cite"])} and strict["match"] == 0
    assert official["failed"] == {} and official["match"] > 0


def test_prompts_over_the_window_are_counted_never_dropped(tmp_path):
    files = {"Math": long_files()["Math"]}
    never = ScriptedBackend("never", lambda prompt: pytest.fail("was shown"))
    records = run_judge(files, plan_of(LONG, "compat"), never, tmp_path / "journal", window=900)
    figures = summary(read_verdicts(by_uid(files), records, "official"))
    assert figures["failed"] == {"too_long": len(files["Math"])} and figures["match"] == 0


def test_forced_choice_takes_the_likelier_letter(tmp_path):
    def answer(prompt):
        better = memory_oracle(prompt).index(0)
        return Reply(numbers={"option_0": -1.0 - better, "option_1": -1.5})

    plan = plan_of(MEMORY, "compat", ask="choice")
    records = run_judge(memory_files(), plan, ScriptedBackend("c", answer), tmp_path / "journal")
    assert summary(read_verdicts(by_uid(memory_files()), records, "choice"))["match"] == 1
    with pytest.raises(ConfigError, match="rankings"):
        plan_of(LONG, "compat", ask="choice")


class CharacterEncoder:
    """One token a character, so that lengths tell texts apart."""

    thinking_tag = ""

    def ids(self, text):
        return [ord(letter) % 100 + 1 for letter in text]

    def encode(self, rendered):
        return self.ids("\n".join(message.text for message in rendered.messages))


def test_a_reward_that_is_no_number_is_an_error_not_a_rank(tmp_path):
    files = {"Math": long_files()["Math"][:2]}
    best = [len(item.question) + 1 + len(item.answers[0]) for item in files["Math"]]
    model = SimpleNamespace(score=lambda ids, lengths: np.where(np.isin(lengths, best), np.nan, 0.0))
    backend = RewardBackend(model, identity={}, max_tokens=None)
    plan = plan_of(LONG, "compat", ask="reward")
    records = run_judge(files, plan, backend, tmp_path / "journal", encoder=CharacterEncoder())
    assert len(records) < 4
    assert len(join_rewards(records, {item.uid: (0, 1) for item in files["Math"]})) < 2


@pytest.mark.parametrize(
    ("length", "kept", "middle"), [(131_071, 131_071, None), (131_072, 131_067, 65_541), (200_000, 131_067, 134_469)]
)
def test_official_cut(length, kept, middle):
    ids = official_cut(range(length))
    assert len(ids) == kept and ids[0] == 0 and ids[-1] == length - 1
    if middle is not None:
        assert (ids[65_535], ids[65_536]) == (65_535, middle)


def test_long_prompts_are_cut_where_the_official_evaluators_cut(tmp_path):
    item = long_files()["Math"][0]
    long_item = type(item)(**{**vars(item), "question": item.question * 60})
    plan = plan_of(LONG, "compat")
    seen = []
    backend = ScriptedBackend("b", lambda prompt: seen.append(len(prompt.prompt_ids)) or "[[A]]")
    files = {"Math": [long_item]}
    records = run_judge(files, plan, backend, tmp_path / "journal", encoder=CharacterEncoder())
    assert seen == [131_067]
    assert summary(read_verdicts(by_uid(files), records, "official"))["shortened"] == 1


def test_letters_to_choose_from_outlive_the_official_cut(tmp_path):
    item = next(iter(memory_files().values()))[0]
    long_item = type(item)(**{**vars(item), "question": item.question + "much more " * 15_000})
    seen = []

    def answer(prompt):
        seen.append((len(prompt.prompt_ids), prompt.option_ids))
        return Reply(numbers={"option_0": -1.0, "option_1": -2.0})

    plan = plan_of(MEMORY, "compat", ask="choice")
    encoder = CharacterEncoder()
    backend = ScriptedBackend("c", answer)
    run_judge({"long": [long_item]}, plan, backend, tmp_path / "journal", encoder=encoder)
    assert seen == [(131_067, (tuple(encoder.ids("A")), tuple(encoder.ids("B"))))]


def test_every_setting_and_length_has_its_group():
    groups = judge_groups(memory_files(), plan_of(MEMORY, "compat"), None)
    assert sum(group.count for group in groups) == 3 * len(SETTINGS)
    assert all(500 < group.tokens < 3000 for group in groups)

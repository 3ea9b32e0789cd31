from itertools import count

import pytest

from eval.benchmark import rows_csv
from eval.report.tables import ALL_TASKS, means_over_tasks, overall_rows, summarise, time_ratios

UIDS = map(str, count())


def record(task="vt", length=1024, arm="full", score=1.0, status="ok", **rest):
    made = {"task": task, "axes": {"length": length}, "arm": arm, "main": "match", "scores": {"match": score}}
    made["uid"] = next(UIDS)
    return made | {"status": status, "cut_tokens": 0, "finish": "stop", "numbers": {}} | rest


def test_rows_count_what_went_wrong_and_average_the_rest():
    records = [
        record(score=1, numbers={"msr": 0.2, "prefill_s": 1.0, "decode_s": 1.0}),
        record(score=0.5, cut_tokens=3, numbers={"msr": 0.4, "prefill_s": 3.0, "decode_s": 1.0}, finish="length"),
        record(score=0, status="too_long"),
        record(arm="elastic", numbers={"msr": 0.5, "prefill_s": 0.5, "decode_s": 1.0}),
    ]
    full, elastic = summarise(records, ("length",))
    assert (full["n"], full["score"], full["msr"], full["prefill_s"]) == (3, 0.5, pytest.approx(0.3), 2.0)
    assert (full["ok"], full["too_long"], full["cut"], full["out_of_room"]) == (2, 1, 1, 1)
    assert full["interval"][0] <= 0.5 <= full["interval"][1]
    assert time_ratios([full, elastic], "full") == {("vt", 1024, "full"): 1.0, ("vt", 1024, "elastic"): 0.5}


def test_a_sample_shown_twice_counts_once_and_its_replies_by_status():
    showings = [record(uid=str(place // 2), score=place % 2) for place in range(20)]
    showings[0]["status"] = "unparsed"
    (row,) = summarise(showings)
    assert (row["n"], row["score"], row["interval"]) == (10, 0.5, [0.5, 0.5])
    assert (row["ok"], row["unparsed"]) == (19, 1)


def test_the_mean_of_tasks_weighs_tasks_alike_and_is_narrower():
    records = [
        record(task, 1024, "full", score) for task, n in (("a", 40), ("b", 10)) for score in (1.0, 0.0) * (n // 2)
    ]
    records += [record("b", score=1.0) for _ in range(10)]
    rows = summarise(records, ("length",))
    (mean,) = means_over_tasks(rows, ("length",))
    assert (mean["task"], mean["length"], mean["n"], mean["tasks"]) == (ALL_TASKS, 1024, 60, 2)
    assert mean["score"] == pytest.approx((0.5 + 0.75) / 2)
    widths = [row["interval"][1] - row["interval"][0] for row in rows]
    assert mean["interval"][1] - mean["interval"][0] < max(widths)
    assert means_over_tasks(rows[:1], ("length",)) == []


def test_overall_rows_weigh_samples_alike_and_break_down_by_one_axis_each():
    shown = [("easy", "short", 1.0), ("easy", "long", 0.0), ("hard", "short", 0.0), ("easy", "short", 1.0)]
    records = [record(uid=str(i), axes={"difficulty": d, "size": z}, score=x) for i, (d, z, x) in enumerate(shown)]
    found = {(row["difficulty"], row["size"]): (row["task"], row["n"], row["score"]) for row in rows_of(records)}
    assert found[None, None] == ("overall", 4, 0.5) and found["easy", None] == ("overall", 3, pytest.approx(2 / 3))
    assert list(found) == [(None, None), ("easy", None), ("hard", None), (None, "short"), (None, "long")]


def rows_of(records):
    return overall_rows(records, ("difficulty", "size"))


def test_csv_has_a_column_for_everything():
    rows = summarise([record(), record("cwe", status="empty", score=0.0)], ("length",))
    header, first, second = rows_csv(rows).splitlines()
    assert header.startswith("task,length,arm,n,score,ok,")
    assert {"empty", "interval_low", "interval_high"} <= set(header.split(","))
    assert first.startswith("vt,1024,full,1,1.0,1,") and second.startswith("cwe,1024,full,1,0.0,")

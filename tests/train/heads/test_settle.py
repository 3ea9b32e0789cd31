from pathlib import Path

import numpy as np
import pytest
from heads_run import MODEL, RandomSamples
from tiny import tiny_model

from elastic_jax.journal import Journal
from elastic_jax.model import to_params
from train.heads.settle import HeldOut, first_order, head_set, ranks, settled


class Worth:
    """Held-out samples that miss each head outside of a set by its worth."""

    def __init__(self, worth):
        self.worth = np.asarray(worth, float)
        self.asked = []

    def kl(self, full_LK, *, at_most=np.inf):
        self.asked.append(full_LK.copy())
        total = float(self.worth[~full_LK.ravel()].sum())
        return total if total <= at_most else np.inf


def test_the_last_gate_orders_heads_then_how_long_it_stayed_open():
    gates = np.array([[0.0, 1.0], [0.0, 0.5]])
    opened = np.array([[3.0, 9.0], [5.0, 7.0]])
    assert first_order(gates, opened).tolist() == [1, 3, 2, 0]


def test_an_exchange_that_lowers_the_distance_is_kept():
    held_out = Worth([9, 1, 8, 2, 7, 0])
    told = []
    order = settled(np.array([0, 2, 1, 4, 3, 5]), 3, (3, 2), held_out, 8, lambda done, kl: told.append((done, kl)))
    assert set(order[:3].tolist()) == {0, 2, 4} and sorted(order.tolist()) == list(range(6))
    assert told[-1][1] == 3 and [done for done, _ in told] == list(range(1, len(told) + 1))
    # the nearest to the edge first: head 1 for head 4
    assert np.flatnonzero(held_out.asked[1]).tolist() == [0, 2, 4]


def test_no_more_exchanges_are_tried_than_asked_and_none_twice():
    held_out = Worth(np.zeros(6))
    settled(np.arange(6), 3, (3, 2), held_out, 100, lambda *_: None)
    assert len(held_out.asked) == 1 + 9
    held_out = Worth(np.zeros(6))
    assert settled(np.arange(6), 3, (3, 2), held_out, 0, lambda *_: None).tolist() == list(range(6))


@pytest.mark.parametrize("count", [0, 6])
def test_there_is_nothing_to_exchange_at_the_ends(count):
    assert settled(np.arange(6), count, (3, 2), Worth(np.ones(6)), 5, lambda *_: None).tolist() == list(range(6))


def test_ranks_are_the_places_in_the_order():
    order = np.array([3, 0, 2, 1])
    assert ranks(order, (2, 2)).tolist() == [[1, 3], [2, 0]]
    assert head_set(order, 2, (2, 2)).tolist() == [[True, False], [False, True]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    model = tiny_model(**MODEL)
    file: Path = tmp_path_factory.mktemp("settle") / "settle.jsonl"
    batches = [RandomSamples().batch(number, 1, 256) for number in range(2)]
    with Journal(file, {"a": 1}) as journal:
        yield HeldOut(model.config, to_params(model), batches, journal), journal


def test_full_attention_has_no_distance_and_fewer_heads_have_more(measured):
    held_out, _ = measured
    assert abs(held_out.kl(np.ones((3, 2), bool))) < 1e-5
    assert held_out.kl(np.zeros((3, 2), bool)) > 0.01


def test_a_measured_set_is_read_from_the_journal(measured):
    held_out, journal = measured
    chosen = np.eye(3, 2) > 0
    first, known = held_out.kl(chosen), len(journal)
    assert held_out.kl(chosen) == first and len(journal) == known


def test_groups_that_share_a_journal_have_distances_of_their_own(measured):
    held_out, journal = measured
    other = RandomSamples(7).batch(0, 1, 256)._replace(group=np.int32(1))
    model = tiny_model(**MODEL)
    chosen = np.eye(3, 2) > 0
    assert HeldOut(model.config, to_params(model), [other], journal).kl(chosen) != held_out.kl(chosen)
    assert f"1/{np.packbits(chosen.ravel()).tobytes().hex()}/0" in journal


def test_a_set_that_is_worse_for_sure_is_measured_no_further(measured):
    held_out, journal = measured
    chosen, known = np.eye(3, 2)[:, ::-1] > 0, len(journal)
    assert held_out.kl(chosen, at_most=0.0) == np.inf and len(journal) == known + 1


def test_the_share_of_tokens_that_full_attention_predicts(measured):
    assert 0 <= measured[0].answered() <= 0.3  # of 64 random tokens

from itertools import product

import pytest

from eval.bench.settings import BenchCacheSettings
from eval.bench.work import (
    MODELS,
    HeadShape,
    hybrid_flops,
    routed_flops,
    selection_flops,
    spread_heads,
    visited_pairs,
)

SHAPE = HeadShape(6, 3, 10)


@pytest.mark.parametrize("tokens", [1, 128, 2176, 2177, 2500])
def test_pairs_are_those_of_the_published_mask(tokens):
    queries = range(tokens) if tokens < 2177 else range(2176, tokens)
    skipped = sum(k // 128 >= 1 and k // 128 <= q // 128 - 16 for q, k in product(queries, range(tokens)) if k <= q)
    assert visited_pairs(tokens, False) == tokens * (tokens + 1) // 2
    assert visited_pairs(tokens, True) == tokens * (tokens + 1) // 2 - skipped


def test_operations_follow_the_pairs():
    full, sparse = (visited_pairs(3000, kind) for kind in (False, True))
    forward = [hybrid_flops(SHAPE, 3000, heads, training=False) for heads in range(4)]
    assert forward == [4 * 10 * 2 * ((3 - heads) * full + heads * sparse) for heads in range(4)]
    assert hybrid_flops(SHAPE, 3000, 1, training=True) == 3.5 * forward[1]
    assert routed_flops(SHAPE, 3000, 0) == hybrid_flops(SHAPE, 3000, 0, training=True)
    assert routed_flops(SHAPE, 3000, 2) == forward[0] + 2.5 * forward[2]


def test_a_selection_multiplies_every_group_of_queries_with_the_groups_before_it():
    groups = -(-3000 // 16)
    pairs = sum(a >= b for a, b in product(range(groups), repeat=2))
    assert selection_flops(SHAPE, 3000, 3) == 2 * 16 * 10 * pairs * 6


def test_sparse_heads_are_spread():
    assert spread_heads(8, 4) == [0, 1, 0, 1, 0, 1, 0, 1]
    for shape in MODELS.values():
        for count in range(shape.kv_heads + 1):
            modes = spread_heads(shape.kv_heads, count)
            assert len(modes) == shape.kv_heads and sum(modes) == count and set(modes) <= {0, 1}


def test_a_cache_has_room_for_the_warming_call_and_the_timed_ones():
    assert BenchCacheSettings(steps=5, rounds=3).room == 5 + 3 * 5

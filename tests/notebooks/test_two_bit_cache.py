"""Bytes and quality of the third notebook."""

from notebook_runs import run_notebook

SIZE = """
PROMPT_TOKENS = 1536
WINDOWS = 1
SCORED_TOKENS = 8
CACHES = {"16 bits": (16, "full"), "2 bits, elastic": (2, None)}
LENGTHS = [2048, 131072]
"""


def test_two_bit_cache(tmp_path):
    run = run_notebook(
        "03_two_bit_cache",
        tmp_path,
        size=SIZE,
        facts={
            "bytes": "[result.cache_bytes for result in results.values()]",
            "counted": "int(counted)",
            "perplexity": "list(perplexity.values())",
            "forecast": "[int(counted_bytes(bits, 131072, results[label].routing.mode))"
            " for label, (bits, _) in CACHES.items()]",
        },
    )
    plain, small = run.facts["bytes"]
    assert small < plain / 4
    assert run.facts["counted"] == small
    assert all(1 < value < 1000 for value in run.facts["perplexity"])
    plain, small = run.facts["forecast"]
    assert small < plain / 10
    assert run.pictures == 2

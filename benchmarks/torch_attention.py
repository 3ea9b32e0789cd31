"""Causal attention of torch on CPU; `elastic-jax bench attention --torch-python PYTHON` runs it with that Python.

Reads one JSON line from standard input: `shape_q` and `shape_kv` (`[B, heads, T, head_dim]`), `dtype` and `threads`.
Then each further line asks for one timed call and is answered with its seconds, so that the caller can take turns.
"""

import json
import sys
import time

import torch


def main() -> None:
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["dtype"])
    q = torch.randn(job["shape_q"], dtype=dtype)
    k, v = (torch.randn(job["shape_kv"], dtype=dtype) for _ in range(2))

    def attend() -> None:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    attend()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        attend()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()

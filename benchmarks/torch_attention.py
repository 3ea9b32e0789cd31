"""Causal attention of torch; `elastic-jax bench attention` and `bench kernel` run it with `--torch-python PYTHON`.

Each line of standard input is a job in JSON: `kernel` ("sdpa" or "flex"), `device`, `shape_q` and `shape_kv`
(`[B, heads, T, head_dim]`), `dtype`, `training` (forward and backward), `calls` in a row and `threads`. It is answered
with `{"seconds": ...}` of one call or `{"error": ...}`. A new job is warmed up first; the caller takes turns.
"""

import json
import sys
import time

import torch


def prepare(job):
    """A function that does the job once."""
    torch.set_num_threads(job["threads"])
    options = {"dtype": getattr(torch, job["dtype"]), "device": job["device"], "requires_grad": job["training"]}
    q = torch.randn(job["shape_q"], **options)
    k, v = (torch.randn(job["shape_kv"], **options) for _ in range(2))
    d_out = torch.randn_like(q)
    if job["kernel"] == "flex":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        tokens = q.shape[2]
        mask = create_block_mask(lambda b, h, i, j: j <= i, None, None, tokens, tokens, device=job["device"])
        compiled = torch.compile(flex_attention)

        def attend():
            return compiled(q, k, v, block_mask=mask, enable_gqa=True)
    else:

        def attend():
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def train():
        torch.autograd.grad(attend(), (q, k, v), d_out)

    return train if job["training"] else attend


def wait(job):
    if job["device"] == "cuda":
        torch.cuda.synchronize()


def main():
    ready, shape = {}, None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            if job["shape_q"] != shape:
                ready, shape = {}, job["shape_q"]
            key = json.dumps({name: value for name, value in job.items() if name != "calls"})
            if key not in ready:
                ready[key] = prepare(job)
                ready[key]()
                wait(job)
            start = time.perf_counter()
            for _ in range(job["calls"]):
                ready[key]()
            wait(job)
            answer = {"seconds": (time.perf_counter() - start) / job["calls"]}
        except RuntimeError as error:
            answer = {"error": str(error).strip().splitlines()[0][:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

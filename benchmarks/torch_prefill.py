"""Prefill time of `transformers` on torch; `elastic-jax bench prefill --torch-python PYTHON` runs it with that Python.

Reads one JSON line from standard input: `model` (Hugging Face directory), `prompts` (lists of token ids), `dtypes`
and `repeats`. Answers with one line, a JSON list of `{"dtype", "tokens", "seconds"}`: the median time from a prompt to
the logits of its next token and a filled cache, without the first, warming run.
"""

import json
import statistics
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    job = json.loads(sys.stdin.readline())
    results = []
    for dtype in job["dtypes"]:
        model = AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        for prompt in job["prompts"]:
            ids = torch.tensor([prompt])
            seconds = []
            with torch.inference_mode():
                for _ in range(1 + job["repeats"]):
                    start = time.perf_counter()
                    model(ids, use_cache=True, logits_to_keep=1)
                    seconds.append(time.perf_counter() - start)
            results.append({"dtype": dtype, "tokens": len(prompt), "seconds": statistics.median(seconds[1:])})
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    main()

"""Decode time of `transformers` on torch with its own caches; `elastic-jax bench cache --torch-python PYTHON` runs it.

Reads one JSON line from standard input: `model` (Hugging Face directory), `dtype`, `rows`, `tokens`, `steps` and
`threads`; answers with one line that maps each kind of cache to its bytes, or to the reason why it is not there. Then
each further line names a kind, in JSON too, and is answered with the mean seconds of `steps` decode steps of all rows.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache

KINDS = {
    "transformers DynamicCache": None,
    "transformers fp8": {"backend": "fp8"},
    "transformers quanto 2 bits": {"backend": "quanto", "nbits": 2, "axis_key": -1, "axis_value": -1},
    "transformers hqq 2 bits": {"backend": "hqq", "nbits": 2, "axis_key": 1, "axis_value": 1},
}


def tensor_bytes(x) -> int:
    """Bytes of the tensors in an object, whatever holds them."""
    if isinstance(x, torch.Tensor):
        if hasattr(x, "__tensor_flatten__"):
            return sum(tensor_bytes(getattr(x, name)) for name in x.__tensor_flatten__()[0])
        return x.numel() * x.element_size()
    if isinstance(x, dict):
        return sum(map(tensor_bytes, x.values()))
    return sum(map(tensor_bytes, x)) if isinstance(x, (list, tuple)) else 0


def filled(model, job, options):
    """A cache of that kind with random tokens."""
    config = model.config
    cache = DynamicCache(config=config) if options is None else QuantizedCache(config=config, **options)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (job["rows"], config.num_key_value_heads, job["tokens"], head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype), layer)
    return cache


def main() -> None:
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=getattr(torch, job["dtype"]), attn_implementation="sdpa"
    ).eval()
    caches, answer = {}, {}
    for kind, options in KINDS.items():
        try:
            caches[kind] = filled(model, job, options)
            answer[kind] = sum(tensor_bytes(vars(layer)) for layer in caches[kind].layers)
        except (ImportError, ValueError) as error:
            answer[kind] = str(error)
    print(json.dumps(answer), flush=True)
    token = torch.ones((job["rows"], 1), dtype=torch.long)
    with torch.inference_mode():
        for line in sys.stdin:
            start = time.perf_counter()
            for _ in range(job["steps"]):
                model(token, past_key_values=caches[json.loads(line)], use_cache=True)
            print((time.perf_counter() - start) / job["steps"], flush=True)


if __name__ == "__main__":
    main()

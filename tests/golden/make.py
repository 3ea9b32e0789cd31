"""Makes the golden models beside this file: tiny random checkpoints and what PyTorch computes with them.

Not part of the test-suite, which needs no torch. Run it from an environment with torch, transformers 5, safetensors,
sentencepiece and, for `--smollm2`, gguf and accelerate:

    python tests/golden/make.py
    python tests/golden/make.py --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent

TOKENS = 160
ORIGINAL = 64
"""Positions before extension in the scaled rope types: most of the tokens lie beyond."""

SMALL = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
    rms_norm_eps=1e-5,
    bos_token_id=1,
    eos_token_id=2,
)
LONG_FACTORS = [1.0, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0]


def rope(kind: str, theta: float = 10_000.0, **values) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


MODELS = {
    "llama3": ("llama", rope(
        "llama3", 500_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=ORIGINAL,
    )),
    "llama_tied": ("llama", rope("default") | dict(tie_word_embeddings=True, num_key_value_heads=4)),
    "llama_bias": ("llama", rope("default") | dict(attention_bias=True)),
    "llama_linear": ("llama", rope("linear", factor=4.0)),
    "llama_dynamic": ("llama", rope("dynamic", factor=2.0) | dict(max_position_embeddings=ORIGINAL)),
    "llama_yarn": ("llama", rope("yarn", factor=4.0, original_max_position_embeddings=ORIGINAL)),
    "llama_longrope": ("llama", rope(
        "longrope", short_factor=[1.0] * 8, long_factor=LONG_FACTORS, original_max_position_embeddings=ORIGINAL
    )),
    "mistral": ("mistral", rope("default", 1e6) | dict(sliding_window=None)),
    "mistral_window": ("mistral", rope("default") | dict(sliding_window=48)),
    "qwen2": ("qwen2", rope("default", 1e6) | dict(num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen3_tied": ("qwen3", rope("default", 1e6) | dict(num_attention_heads=8, tie_word_embeddings=True)),
    "qwen3_untied": ("qwen3", rope("default", 1e6)),
}  # fmt: skip

LONG = 700
"""Tokens of the prompts of `FAMILIES`, beyond their windows and original positions."""
GREEDY = 24
BIASES = dict(attention_bias=True, mlp_bias=True)
FAMILIES = {
    "arcee": ("arcee", BIASES | dict(hidden_size=64, num_attention_heads=4)),
    "granite": ("granite", BIASES | dict(
        embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.11, logits_scaling=1.7,
        tie_word_embeddings=True,
    )),
    "internlm3": ("internlm3", BIASES | rope("dynamic", factor=2.0) | dict(
        max_position_embeddings=256, architectures=["InternLM3ForCausalLM"],
    )),
    "llama_mlp_bias": ("llama", BIASES),
    "ministral": ("ministral", rope("default", 1e6) | dict(sliding_window=1024, layer_types=["full_attention"] * 2)),
    "ministral_window": ("ministral", dict(sliding_window=100)),
    "ministral3": ("ministral3", rope(
        "yarn", 1e6, factor=16.0, original_max_position_embeddings=128, mscale=1.0, mscale_all_dim=1.0,
        llama_4_scaling_beta=0.3,
    )),
    "olmo2": ("olmo2", rope("default", 5e5)),
    "olmo2_bias": ("olmo2", dict(attention_bias=True, num_key_value_heads=4)),
    "phi3": ("phi3", dict(hidden_size=64, original_max_position_embeddings=4096, sliding_window=150, pad_token_id=0)),
    "phi3_longrope": ("phi3", rope(
        "longrope", short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5], long_factor=[1.0, 1.3, 1.7, 2.2, 3.0, 4.0],
        partial_rotary_factor=0.75, original_max_position_embeddings=128,
    ) | dict(hidden_size=64, original_max_position_embeddings=128, sliding_window=None, pad_token_id=0)),
    "seed_oss": ("seed_oss", rope("default", 1e7) | dict(attention_bias=True, attention_out_bias=True, mlp_bias=True)),
    "seed_oss_plain": ("seed_oss", dict(attention_bias=True, attention_out_bias=False)),
    "smollm3": ("smollm3", rope("default", 5e6) | dict(num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0])),
    "smollm3_default": ("smollm3", BIASES | dict(num_hidden_layers=4, tie_word_embeddings=False)),
}  # fmt: skip

BLOCK, SINK_BLOCKS, LOCAL_BLOCKS, POOL = 128, 1, 2, 100
OFFICIAL = {
    "architectures": ["PawQwen3ForCausalLM"],
    "sink_size": BLOCK * SINK_BLOCKS,
    "local_window_size": BLOCK * LOCAL_BLOCKS,
    "toggle_type": "streaming",
    "retrieval_mode": "full",
    "pooling_mode": "ctx_q",
    "enable_ada_sparsity": True,
    "use_softmax": True,
    "enable_lambda_task": True,
    "use_task_emb_for_mask": False,
    "disable_linear_regularization_term": False,
    "suggested_sparsity": None,
    "suggested_threshold": 0.5,
    "triangle_n_last": 128,
    "topk_k": 2048,
    "pooling_seq": True,
}


def random_model(family: str, config: dict, dtype: torch.dtype, seed: int) -> nn.Module:
    """A model whose attention is far from uniform and whose weights are exact in `dtype`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL | config)).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            else:
                weight.copy_(0.25 * torch.randn_like(weight))
            weight.copy_(weight.to(dtype).float())
    return model


def write(name: str, model: nn.Module, tensors: dict, config: dict, dtype: torch.dtype, golden: dict) -> None:
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    tensors = {key: value.to(dtype).contiguous() for key, value in tensors.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    merged = json.loads(model.config.to_json_string(use_diff=False)) | config
    merged["dtype"] = str(dtype).removeprefix("torch.")
    kept = {key: value for key, value in merged.items() if value not in (None, "") or key == "sliding_window"}
    (directory / "config.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    np.savez_compressed(directory / "golden.npz", **golden)


@torch.no_grad()
def make_plain(name: str, family: str, config: dict, seed: int) -> None:
    model = random_model(family, config, torch.bfloat16, seed)
    ids = torch.randint(0, SMALL["vocab_size"], (1, TOKENS))
    out = model(ids, output_hidden_states=True)
    golden = {
        "input_ids": ids[0].numpy().astype(np.int32),
        "logits": out.logits[0].numpy(),
        "layers": np.stack([layer[0, ::4].numpy() for layer in out.hidden_states]),
    }
    architecture = {"architectures": [type(model).__name__]}
    write(name, model, dict(model.state_dict()), architecture, torch.bfloat16, golden)


@torch.no_grad()
def make_family(name: str, family: str, config: dict, seed: int) -> None:
    """Some positions of a long prompt, greedy tokens after it, and logits under random modes of the heads."""
    config = dict(max_position_embeddings=1024, pad_token_id=0) | config
    model = random_model(family, config, torch.bfloat16, seed)
    ids = torch.randint(3, SMALL["vocab_size"], (1, LONG))
    out = model(ids, output_hidden_states=True)
    at = np.unique(np.r_[0:LONG:25, LONG - 1])
    golden = {
        "input_ids": ids[0].numpy().astype(np.int32),
        "positions": at.astype(np.int32),
        "logits": out.logits[0, at].numpy(),
        "layers": np.stack([layer[0, at[::4]].numpy() for layer in out.hidden_states]),
    }
    AttentionInterface.register("elastic", elastic_attention)
    plain, model.config._attn_implementation = model.config._attn_implementation, "elastic"
    full_LK = torch.rand(model.config.num_hidden_layers, model.config.num_key_value_heads) < 0.5
    for layer, full_K in zip(model.model.layers, full_LK, strict=True):
        layer.self_attn.full_BK = full_K[None]
    golden["full"] = full_LK.numpy()
    golden["logits_mixed"] = model(ids).logits[0, at].numpy()
    model.config._attn_implementation = plain  # last, as dynamic rope keeps the frequencies of the longest text
    greedy = model.generate(ids, max_new_tokens=GREEDY, do_sample=False, eos_token_id=-1)
    golden["greedy"] = greedy[0, LONG:].numpy().astype(np.int32)
    architecture = {"architectures": config.get("architectures", [type(model).__name__])}
    write(name, model, dict(model.state_dict()), architecture, torch.bfloat16, golden)


class Router(nn.Module):
    """The router of released checkpoints, under its parameter names."""

    def __init__(self, width: int):
        super().__init__()
        self.cls_feat_extractor = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))
        self.cls_router_head_agnostic = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width), nn.SiLU(), nn.Linear(width, 2)
        )
        self.register_buffer("log_temp", torch.zeros(()))

    def forward(self, keys_BTKH: torch.Tensor) -> torch.Tensor:
        pooled = torch.cat([keys_BTKH[:, :POOL], keys_BTKH[:, -POOL:]], 1).mean(1)
        return self.cls_router_head_agnostic(self.cls_feat_extractor(pooled))


def elastic_attention(module, query, key, value, attention_mask, scaling, **kwargs):
    """Dense attention under the mask of each head: full where the router says 1, streaming where it says 0."""
    tokens = torch.arange(query.shape[2])
    causal = tokens[:, None] >= tokens[None]
    blocks = tokens // BLOCK
    near = blocks[None] > blocks[:, None] - LOCAL_BLOCKS
    streaming = causal & (near | (blocks[None] < SINK_BLOCKS))
    if kwargs.get("sliding_window"):
        causal = causal & (tokens[:, None] - tokens[None] < kwargs["sliding_window"])
        streaming = causal & streaming
    mask = torch.where(module.full_BK[:, :, None, None], causal, streaming)
    groups = query.shape[1] // key.shape[1]
    key, value, mask = (x.repeat_interleave(groups, 1) for x in (key, value, mask))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@torch.no_grad()
def make_official(seed: int) -> None:
    """A Qwen3 with routers, in the released format; routing, all heads full and all heads streaming."""
    AttentionInterface.register("elastic", elastic_attention)
    config = rope("default", 1e6) | dict(tie_word_embeddings=True, max_position_embeddings=4096)
    model = random_model("qwen3", config, torch.float32, seed)
    model.config._attn_implementation = "elastic"
    ids = torch.randint(0, SMALL["vocab_size"], (2, 600))
    logits: list[torch.Tensor] = []
    forced: list[bool] = []

    def route(attention: nn.Module, keys_BTKH: torch.Tensor) -> None:
        logits.append(attention.mask_allocator(keys_BTKH))
        full = logits[-1][..., 1] > logits[-1][..., 0]
        attention.full_BK = torch.full_like(full, forced[0]) if forced else full

    for layer in model.model.layers:
        attention = layer.self_attn
        attention.mask_allocator = Router(SMALL["head_dim"])
        for weight in attention.mask_allocator.parameters():
            weight.copy_((0.6 if weight.ndim == 2 else 0.02) * torch.randn_like(weight))
        attention.register_parameter("attn_mask_log_alphas", nn.Parameter(4.0 + 0.1 * torch.randn(2)))
        attention.k_norm.register_forward_hook(lambda _, __, keys, attention=attention: route(attention, keys))

    golden = {"input_ids": ids.numpy().astype(np.int32)}
    for name, forced[:] in (("routed", []), ("full", [True]), ("sparse", [False])):
        logits.clear()
        golden[f"logits_{name}"] = model(ids).logits[:, ::5].numpy()
        golden[f"router_{name}"] = torch.stack(logits).numpy()
    modes = golden["router_routed"].argmax(-1)
    assert 0 < modes.mean() < 1, f"choose another seed: routing is {modes.tolist()}"
    tensors = dict(model.state_dict())
    tensors |= {f"model.sparsity_lambda_{i}": torch.zeros(1) for i in (1, 2)}
    tensors |= {f"model.sparsity_lambda{i}_task": torch.rand(5) for i in (1, 2)}
    write("official_qwen3", model, tensors, OFFICIAL, torch.float32, golden)


PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n",
    "Q: 12 + 30 = ?\nA:",
    "Once upon a time, there was a lighthouse keeper who counted ships. " * 12 + "One night",
)


@torch.no_grad()
def make_smollm2(file: Path) -> None:
    """Logits of the real model on five prompts (sampled vocabulary and log-sum-exp), and 32 greedy tokens."""
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    sample = np.sort(np.random.default_rng(0).choice(loaded.config.vocab_size, 200, replace=False))
    golden = {"prompts": np.array(PROMPTS), "vocabulary": sample.astype(np.int32)}
    for i, prompt in enumerate(PROMPTS):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        logits = loaded(ids).logits[0]
        greedy = loaded.generate(ids, max_new_tokens=32, do_sample=False, eos_token_id=-1)[0, ids.shape[1] :]
        golden |= {
            f"input_ids_{i}": ids[0].numpy().astype(np.int32),
            f"logits_{i}": logits[:, sample].numpy(),
            f"lse_{i}": F.cross_entropy(logits, logits.argmax(-1), reduction="none").numpy() + logits.amax(-1).numpy(),
            f"greedy_{i}": greedy.numpy().astype(np.int32),
        }
    np.savez_compressed(HERE / "smollm2.npz", **golden)


TEXTS = (
    "The keeper counted 12 ships, then 345 more.",
    "  two  spaces and\ttabs\n\nnew lines ",
    "naïve café 日本語 👩 \u00a0 end",
    "def f(x):\n    return x ** 2",
    "",
)


def make_sentencepiece() -> None:
    """A small SentencePiece BPE vocabulary with byte fallback, as Llama 2 has, and its token ids."""
    import io
    from pydoc_data.topics import topics

    import sentencepiece

    lines = [line for topic in sorted(topics) for line in topics[topic].splitlines() if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:3000]), model_writer=model, vocab_size=600, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, num_threads=1, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(pieces.get_piece_size())
    kinds = [(pieces.is_unknown, 2), (pieces.is_control, 3), (pieces.is_byte, 6)]
    golden = {
        "tokens": [pieces.id_to_piece(i) for i in ids],
        "scores": [pieces.get_score(i) for i in ids],
        "types": [next((kind for test, kind in kinds if test(i)), 1) for i in ids],
        "texts": {text: pieces.encode(text) for text in TEXTS},
    }
    (HERE / "sentencepiece.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, help="GGUF file of SmolLM2-135M-Instruct; makes only smollm2.npz")
    arguments = parser.parse_args()
    if arguments.smollm2:
        make_smollm2(arguments.smollm2)
    else:
        for number, (name, (family, config)) in enumerate(MODELS.items()):
            make_plain(name, family, config, seed=number)
        for number, (name, (family, config)) in enumerate(FAMILIES.items()):
            make_family(name, family, config, seed=100 + number)
        make_official(seed=4)
        make_sentencepiece()

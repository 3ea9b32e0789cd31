"""Floating-point operations that a step of router training asks for, with the routing as it was sampled."""

from __future__ import annotations

import numpy as np

from elastic_jax.config import ModelConfig
from elastic_jax.routing import streaming_skip_ratio
from train.config import RouterTrainConfig
from train.data.packing import Rows
from train.metrics import Values


def router_step_flops(model: ModelConfig, config: RouterTrainConfig, rows: Rows, values: Values) -> float:
    """FLOPs of one optimizer step over all devices: those of the model, not of what the program repeats.

    The backbone is frozen, so each weight counts twice (forward, gradient of its input). Attention counts the causal
    pairs of full heads and, of sparse heads, the pairs of sinks and window; their share is the mean over the step's
    samples of a task. Recomputation (remat) and the other branch of the two-branch attention do not count; padding
    neither.
    """
    D, H, N, K = model.hidden_size, model.head_dim, model.num_heads, model.num_kv_heads
    weights = model.num_layers * (D * H * (2 * N + 2 * K) + 3 * D * model.intermediate_size)
    segment_ids = np.asarray(rows.segment_ids).reshape(-1, rows.segment_ids.shape[-1])
    task_ids = np.asarray(rows.task_ids).reshape(len(segment_ids), -1)
    lengths = (segment_ids[:, None] == np.arange(1, task_ids.shape[1] + 1)[:, None]).sum(-1)
    sparse = np.nan_to_num(np.asarray(values["msr"]))[np.maximum(task_ids, 0)]
    skipped = sparse * np.asarray(streaming_skip_ratio(lengths, model))
    pairs = lengths * (lengths + 1.0) / 2 * (1 - skipped)
    learnt = int((np.asarray(rows.weights) > 0).sum())
    flops = 4 * weights * lengths.sum() + 12 * H * N * model.num_layers * pairs.sum()
    return config.gates.draws * float(flops + 4 * D * model.vocab_size * learnt)

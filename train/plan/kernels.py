"""Vector memory that the attention kernels take on a TPU."""

from __future__ import annotations

from functools import cache

import jax
from jax.sharding import AbstractMesh

from elastic_jax.config import ModelConfig
from pallas_kernels.layout import Geometry
from pallas_kernels.tpu.backward import backward_bytes
from pallas_kernels.tpu.forward import forward_bytes
from pallas_kernels.tpu.limits import VECTOR_MEMORY, tile_width
from pallas_kernels.tpu.plan import Layout
from train.plan.chips import Chip


@cache
def kernel_bytes(model: ModelConfig, chip: Chip, item: int) -> dict[str, int]:
    """Bytes by kernel, and the limit, for numbers of `item` bytes; empty for a GPU, where tiles are chosen by search.

    The forward kernel is that of training, which writes the chosen branch and the difference of both.
    """
    if not chip.kind:
        return {}
    block, H, groups = model.router.block_size, model.head_dim, model.num_heads // model.num_kv_heads
    layout = Layout(1, model.num_kv_heads, 1, groups, H, Geometry(block, block, block))
    device = jax.sharding.AbstractDevice(device_kind=chip.kind, num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
        keys = {kernel: block * tile_width(kernel, layout) for kernel in ("forward", "backward")}
    return {
        "forward": forward_bytes(layout.rows, H, keys["forward"], item, [item, item]),
        "backward": backward_bytes(layout.rows, H, keys["backward"], item),
        "limit": VECTOR_MEMORY,
    }

"""Meshes of simulated devices: the gradient is that of one device, and what a mesh cannot divide is refused."""

import pytest
from jax.sharding import AbstractMesh
from programs import reports

from elastic_jax.errors import ConfigError
from elastic_jax.sharding.mesh import AXES
from train.reward.config import AdamConfig, SftConfig, SimpoTrainConfig
from train.reward.placement import check_mesh

CASES = (
    "sft:context=8",
    "sft:data=2,context=4",
    "sft:fsdp=2,tensor=2,context=2",
    "simpo:data=4,fsdp=2",
    "simpo-apart:fsdp=2,context=4",
    "bt:fsdp=4,tensor=2",
)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_gradients_on_meshes_equal_one_device() -> None:
    (found,) = reports("reward_on_devices.py", *CASES)
    assert {case: found[case]["difference"] < 2e-5 for case in CASES} == dict.fromkeys(CASES, True), found
    assert found["sft:context=8"]["divided"] == 8 and found["simpo:data=4,fsdp=2"]["divided"] == 2


def test_rows_and_layouts_that_a_mesh_cannot_divide_are_refused() -> None:
    def mesh(**sizes: int) -> AbstractMesh:
        return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)

    three = AdamConfig(rows=3)
    with pytest.raises(ConfigError, match="multiple of 8"):
        check_mesh(SftConfig(optim=three), mesh(data=2, fsdp=4))
    with pytest.raises(ConfigError, match="Set layout separate"):
        check_mesh(SimpoTrainConfig(optim=three), mesh(context=2))
    check_mesh(SimpoTrainConfig(optim=three, layout="separate"), mesh(context=2))
    with pytest.raises(ConfigError, match="offload is for rows of their own"):
        SimpoTrainConfig(remat="offload")
    check_mesh(SftConfig(optim=three), mesh(context=2, fsdp=3))

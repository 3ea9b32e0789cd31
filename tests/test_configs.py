"""Every shipped recipe loads, strictly, into the settings of the verb that it is for."""

from pathlib import Path

import pytest

from elastic_jax.settings import find_config, load_settings, settings_dict
from train.config import RouterTrainConfig
from train.reward.config import BradleyTerryTrainConfig, SftConfig, SimpoTrainConfig

FOLDER = Path(__file__).parents[1] / "configs"
SETTINGS = {
    "router": RouterTrainConfig,
    "sft": SftConfig,
    "simpo": SimpoTrainConfig,
    "bt": BradleyTerryTrainConfig,
}
"""Settings class by the first word of the file's name."""


NAMES = sorted(str(file.relative_to(FOLDER).with_suffix("")) for file in FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_recipe_loads_by_its_name(name: str):
    cls = SETTINGS[name.partition("_")[0]]
    assert find_config(name).resolve() == (FOLDER / f"{name}.yaml").resolve()
    assert settings_dict(load_settings(cls, name)) != settings_dict(cls()), "the recipe changes nothing"

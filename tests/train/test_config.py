import pytest

from elastic_jax.errors import ConfigError
from elastic_jax.settings import load_settings, settings_dict
from train.config import RouterTrainConfig
from train.verbs import router as cli


def test_the_official_recipe_has_the_released_values():
    config = load_settings(RouterTrainConfig, "router_official")
    assert [task.target[0] for task in config.tasks.by_id] == [0.6, 0.6, 1.0, 1.0, 1.0]
    assert (config.optim.steps, config.optim.learning_rate, config.optim.clip) == (300, 5e-4, 5.0)
    assert config.sparsity.loss == "official" and config.router.local_blocks == 16


def test_the_shipped_recipe_uses_the_blocks_of_the_shipped_router():
    router = load_settings(RouterTrainConfig, "router_smollm2").router
    assert (router.block_size, router.sink_blocks, router.local_blocks) == (128, 1, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rat=1", "Did you mean optim.learning_rate"),
        ("tasks.single_qa.target=[0.9, 0.1]", "want 0 <= from <= to <= 1"),
        ("data.template=plain", "raw"),
        ("gates.draws=0", "draws is 0"),
        ("optim.steps=0", "steps is 0"),
        ("router.block_size=100", "no multiple of router.block_size 100"),
    ],
)
def test_bad_settings_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        load_settings(RouterTrainConfig, "router_smollm2", [override])


def test_settings_survive_yaml():
    config = load_settings(RouterTrainConfig, "router_official")
    assert settings_dict(config)["optim"]["accumulate"] == config.optim.accumulate


def test_the_command_needs_a_model_and_a_directory():
    with pytest.raises(ConfigError, match="--model"):
        cli.main(["--config", "router_smollm2"])
    with pytest.raises(ConfigError, match="--run.directory"):
        cli.main(["--config", "router_smollm2", "--model", "somewhere"])

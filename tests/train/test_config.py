import pytest
from overridden import overridden

from elastic_jax.errors import ConfigError
from elastic_jax.settings import load_settings
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
    ("overrides", "message"),
    [
        ("optim.learning_rat=1", "Did you mean optim.learning_rate"),
        ("tasks.single_qa.target=[0.9,0.1]", "want 0 <= from <= to <= 1"),
        ("data.template=plain", "raw"),
        ("gates.draws=0", "draws is 0"),
        ("optim.steps=0", "steps is 0"),
        ("router.block_size=100", "no multiple of router.block_size 100"),
        ("data.held_out=0.1", "Set both, or neither"),
        ("init=somewhere warm_start.rows=[1]", "init and warm_start.rows"),
        ("init=somewhere init_heads=elsewhere", "init and init_heads"),
        ("warm_start.key_rows=4", "nothing to fit to"),
        ("weights=int8 run.export=[router,hf]", "with weights int8 only `router` can be written"),
        ("run.profile=[5,3]", "want 0 <= first step <= last step"),
        ("run.seed=-1", "seed is -1; want a whole number from 0"),
        ("distributed.coordinator=host:1 distributed.processes=2", "with a coordinator want both"),
        ("distributed.processes=2 distributed.process=0", "Give distributed.coordinator"),
    ],
)
def test_bad_settings_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        overridden(RouterTrainConfig, "router_smollm2", overrides.split())


def test_the_command_needs_a_model_and_a_directory():
    with pytest.raises(ConfigError, match="--model"):
        cli.main(["--config", "router_smollm2"])
    with pytest.raises(ConfigError, match="--run.directory"):
        cli.main(["--config", "router_smollm2", "--model", "somewhere"])

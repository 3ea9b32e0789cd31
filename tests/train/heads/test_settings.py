import pytest

from elastic_jax.errors import ConfigError
from train.heads.settings import HeadsDataConfig, HeadsOptimConfig, HeadsTrainConfig, SparseConfig


def test_lengths_are_spaced_by_ratio():
    assert HeadsDataConfig().sizes == (1024, 2048, 4096)
    assert HeadsDataConfig(min_tokens=1000, max_tokens=1000).sizes == (1024,)
    assert HeadsDataConfig(min_tokens=1000, max_tokens=8000, lengths=2).sizes == (1024, 8064)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HeadsDataConfig(min_tokens=100), "min_tokens"),
        (lambda: HeadsDataConfig(min_tokens=4096, max_tokens=1024), "max_tokens"),
        (lambda: HeadsDataConfig(kinds=()), "kinds"),
        (lambda: HeadsDataConfig(chat_share=1.5), "chat_share"),
        (lambda: HeadsTrainConfig(target_msr=1.0), "target_msr"),
        (lambda: HeadsTrainConfig(sparse=SparseConfig(local_blocks=8)), "nothing would be sparse"),
        (lambda: HeadsTrainConfig(per_task=True), "per_task"),
        (lambda: HeadsTrainConfig(per_task=True, data=HeadsDataConfig(kinds=("prose", "code"))), "per_task"),
        (lambda: HeadsOptimConfig(start=0.0), "start"),
        (lambda: SparseConfig(local_blocks=0), "local_blocks"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(make, named):
    with pytest.raises(ConfigError, match=named):
        make()

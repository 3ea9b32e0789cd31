"""Package list; everything else is in pyproject.toml, which cannot mix found packages with a mapped folder."""

from setuptools import find_packages, setup

TOP_LEVEL = ["pallas_kernels*", "elastic_jax*", "train*", "eval*"]

setup(
    packages=[*find_packages(include=TOP_LEVEL), "elastic_jax.configs"],
    package_dir={"elastic_jax.configs": "configs"},
    package_data={
        "elastic_jax": ["data/**/*", "py.typed"],
        "elastic_jax.configs": ["**/*.yaml", "models/*.json"],
        "eval": ["py.typed"],
        "pallas_kernels": ["py.typed"],
        "pallas_kernels.gpu": ["tile_tables/*.json"],
        "pallas_kernels.tpu": ["tile_tables/*.json"],
        "train": ["py.typed"],
    },
)

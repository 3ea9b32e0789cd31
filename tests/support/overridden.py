"""Settings with some values changed, for tests that state a change as text (`"optim.steps=3"`)."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from elastic_jax.settings import find_config, load_settings, read_yaml


def overridden[T](cls: type[T], recipe: str | Path | None, overrides: Sequence[str]) -> T:
    """The settings of a recipe (None: the defaults) with each `path.to.field=YAML` put in its place."""
    values = {} if recipe is None else read_yaml(find_config(recipe))
    for override in overrides:
        path, _, text = override.partition("=")
        *groups, last = path.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = yaml.safe_load(text)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.safe_dump(values))
        file.flush()
        return load_settings(cls, file.name)

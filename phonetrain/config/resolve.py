"""resolve: a recipe, the overrides and the corpus of a command become the one config that a run has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..errors import ConfigError
from . import overrides
from .run_config import RunConfig, load_recipe


def resolve(
    recipe: RunConfig | str | os.PathLike[str] | None = None,
    texts: Iterable[str] = (),
    corpus: str | os.PathLike[str] | None = None,
    epoch: int | None = None,
    settings: Mapping[str, object] | None = None,
) -> RunConfig:
    """The config of a run, validated once as a recipe and once with all changes.

    recipe: a name, the path of a TOML file, or a config; None: the recipe `default`. texts: overrides, "key=value"
    each. settings: the same as values, nested or dotted. corpus: path of the packed corpus, in place of `data.corpus`.
    epoch: where a run stands that is changed by hand, as in `RunConfig.override`. A model of the user's own and a run
    to start from get their whole paths.

    Raises ConfigError.
    """
    config = recipe if isinstance(recipe, RunConfig) else load_recipe("default" if recipe is None else recipe)
    changes = overrides.parsed(texts, settings)
    if corpus is not None:
        changes["data.corpus"] = os.fspath(corpus)
    factory = changes.get("model.factory", config.model.factory)
    if isinstance(factory, str) and factory != "none":
        changes["model.factory"] = with_whole_path(factory)
    from_run = changes.get("model.from_run", config.model.from_run)
    if isinstance(from_run, str) and from_run not in ("none", ""):
        changes["model.from_run"] = str(Path(from_run).resolve())
    mirror = changes.get("checkpoint.mirror", config.checkpoint.mirror)
    if isinstance(mirror, str) and mirror not in ("none", ""):
        changes["checkpoint.mirror"] = mirror if mirror.startswith("~") else str(Path(mirror).resolve())
    return config.replaced(changes, epoch) if changes else config


def with_whole_path(factory: str) -> str:
    """`factory` with the whole path of its file, so that it is found from wherever a run is opened later."""
    source, _, name = factory.rpartition(":")
    if not source.endswith(".py"):
        return factory
    try:
        return f"{Path(source).resolve()}:{name}"
    except (OSError, RuntimeError) as error:  # a current directory that is gone; links that lead to each other
        raise ConfigError(
            f"model.factory = {factory}: its file is not found from here ({error}); give its whole path"
        ) from None

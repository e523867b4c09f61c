"""fit: check everything that can be checked, build the parts, train a new run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from phonedata import PackedCorpus

from ..config.resolve import resolve
from ..config.run_config import RunConfig
from ..console.base import Console
from ..device import determinism
from ..distributed import ProcessGroup, init
from ..errors import ConfigError, RunNotFound
from ..model.trust import trust
from ..runs.directory import Run
from . import checkpoint
from .data import open_corpus
from .mirror import refuse_other_run
from .resume import resume as go_on
from .session import environment, prepare, seen_by, shown_by, train


def fit(
    recipe: str | os.PathLike[str] | None = None,
    *overrides: str,
    config: RunConfig | None = None,
    corpus: str | os.PathLike[str] | None = None,
    run: str | os.PathLike[str] | None = None,
    console: Console | None = None,
    **settings: object,
) -> Run:
    """Train a recipe on a packed corpus in a new run directory.

    Parameters
    ----------
    recipe: name of a recipe (`phonetrain recipes list`) or path of a TOML file; default: the recipe `default`.
    overrides: "key=value" settings, each a text of its own. settings: the same as keywords, `epochs=2`, a section as a
    dict, `optimizer={"lr": 5e-4}`. config: a RunConfig in place of a recipe.
    corpus: packed corpus; default: the config's, else packed/. run: run directory; default runs/<recipe>-<n>.
    console: where progress is shown; default: what fits the place.

    Returns
    -------
    The run; `run.status` says how it ended: finished, early_stopped, deadline, or the name of a signal.

    A directory whose run ended before its first checkpoint is taken again, and that is said.

    Raises ConfigError, RunExists and phonedata's errors before anything is written, TrainingStopped after.
    """
    began = time.monotonic()
    if recipe is not None and config is not None:
        raise ConfigError(f"fit: got the recipe {recipe} and a config, wanted one of them; load_recipe makes a config")
    name = None if config is not None else os.fspath(recipe or "default")
    config = resolve(config or name, overrides, corpus, settings=settings)
    with init(config.device) as ranks:
        begun = ranks.share(begun_before(run) if ranks.restarts and ranks.is_main else None)
        if begun is not None and checkpoint.saved_steps(Run(begun)):
            return go_on(begun, corpus=corpus, console=console)
        packed = open_corpus(config)
        if run is not None:
            check_place(run, packed)
        prepared = prepare(config, packed)
        where = Run(begun) if begun is not None else Run.create(run, name or "run") if ranks.is_main else None
        where = seen_by(ranks, where)
        with where.lock(), shown_by(ranks, console) as shown, determinism(config.deterministic):
            if ranks.is_main and (untold := trust(config.model.factory)):
                prepared.warnings.append(untold)
            if aside := where.set_aside():
                shown.say(aside)
            refuse_other_run(where, config.checkpoint.mirror)
            where.write_text(where.config_path, config.to_toml())
            where.write_json(where.environment_path, environment(packed, prepared.setup.device_spec, where))
            learnt = {}
            if prepared.start is not None:
                shown.say(prepared.start.sentence)
                learnt["from_run"] = prepared.start.record(where)
            where.append_event("run_started", segment=0, epoch=0, step=0, recipe=name, **learnt, **launch(ranks))
            where.append_event("segment_started", segment=0, epoch=0, step=0)
            train(where, prepared.setup, shown, prepared.warnings, True, ranks, began)
    return where


def check_place(run: str | os.PathLike[str], corpus: PackedCorpus) -> None:
    """Raises ConfigError for a new run's directory that would scatter its files or spoil the corpus."""
    if not os.fspath(run):
        raise ConfigError("--run: got nothing, wanted a directory for the run")
    if Path(run).resolve().is_relative_to(corpus.path.resolve()):
        raise ConfigError(
            f"--run {run}: lies in the corpus {corpus.path}, which holds nothing else; give another place"
        )


def launch(ranks: ProcessGroup) -> dict[str, Any]:
    """What torchrun calls this launch: processes that it starts again find their run by it."""
    return {"ranks": ranks.world_size, "launch": launch_id()} if ranks.world_size > 1 else {}


def launch_id() -> str:
    """torchrun's id of this launch; where it was started without `--standalone` or an id, all its launches are called
    `none`, and the process that started this one tells them apart."""
    given = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"process {os.getppid()}" if given == "none" else given


def begun_before(run: str | os.PathLike[str] | None) -> Path | None:
    """The run that the processes of this launch trained before torchrun started them again; None if there is none.

    run: as given to fit. A directory that holds the run of another launch is no reason to go on with it.
    """
    try:
        where = Run.open(run)
    except RunNotFound:
        return None
    launches = [event.get("launch") for event in where.events("run_started")]
    return where.path if launch_id() in launches else None

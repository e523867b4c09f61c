"""fit: check everything that can be checked, build the parts, train a new run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from phonedata import PackedCorpus

from ..checkpoints import series
from ..checkpoints.mirror import refuse_other_run
from ..config.resolve import resolve
from ..config.run_config import RunConfig
from ..console.base import Console
from ..device import determinism
from ..distributed import ProcessGroup, init
from ..errors import ConfigError, RunNotFound
from ..model.trust import trust
from ..runs.directory import Run
from .data import open_corpus
from .launch import trained
from .resume import resume_here
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
    given = {"name": name, "run": run, "began": began}
    return trained(config, console, fit_here, lambda config, pace: {"config": config, "pace": pace, **given})


def fit_here(
    config: RunConfig,
    name: str | None,
    run: str | os.PathLike[str] | None,
    pace: dict[str, float],
    console: Console | None,
    began: float,
) -> Run:
    """`fit` as this process does it, alone or together with others that do the same.

    name: the recipe's. pace: processes -> frames a second, where `devices = auto` was decided by it. began: monotonic
    time, which is the same in all processes of a machine.
    """
    with init(config.device) as ranks:
        begun = ranks.share(begun_before(run) if ranks.restarts and ranks.is_main else None)
        if begun is not None and series.saved_steps(Run(begun)):
            return resume_here(begun, {}, config.data.corpus, None, True, console, began)
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
            measured = {"devices_measured": pace} if pace else {}
            about = {"recipe": name, **learnt, **launch(ranks), **measured}
            where.append_event("run_started", segment=0, epoch=0, step=0, **about)
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
    """The name of this launch, by which restarted processes find their run."""
    name = launch_id()
    return ({"ranks": ranks.world_size} if ranks.world_size > 1 else {}) | ({"launch": name} if name else {})


def launch_id() -> str | None:
    """Slurm's number of this job, which a requeued one keeps, else torchrun's id of this launch, else None.

    Where torchrun was started without `--standalone` or an id, all its launches are called `none`, and the process that
    started this one tells them apart.
    """
    if job := os.environ.get("SLURM_JOB_ID"):
        return f"slurm job {job}"
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"process {os.getppid()}" if given == "none" else given


def begun_before(run: str | os.PathLike[str] | None) -> Path | None:
    """The run that this launch trained before its processes were started again; None if there is none.

    run: as given to fit. A directory that holds the run of another launch is no reason to go on with it; and a job of
    Slurm's may train several, so that it has to say which.
    """
    if run is None and "SLURM_JOB_ID" in os.environ:
        return None
    try:
        where = Run.open(run)
    except RunNotFound:
        return None
    launches = [event.get("launch") for event in where.events("run_started")]
    return where.path if launch_id() is not None and launch_id() in launches else None

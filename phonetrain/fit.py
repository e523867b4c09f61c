"""fit and resume: check everything that can be checked, build the parts, train, say what comes next."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phonedata import PackedCorpus

from . import advice, checkpoint, gpu_layer
from .assemble import Parts, assemble, identity, training_selection
from .config import RunConfig, diff, load_recipe
from .console import Console, Mute, open_console
from .device import Compute, choose_compute, describe_machine, determinism, version
from .errors import ConfigError, RunNotFound
from .factory import placed
from .overrides import parsed, refuse_keywords
from .partitions import (
    Roles,
    check_window,
    choose_roles,
    corpus_of,
    open_corpus,
    place_from_run,
    warnings_before_training,
)
from .ranks import Ranks, here, joined
from .resuming import (
    changes_by_hand,
    check_changes,
    check_identity,
    find_checkpoint,
    restore_machine,
    restore_parts,
    told_change,
)
from .run import Onlooker, Run
from .segment import train
from .stages import StagePlan, plan_stages
from .wording import counted

PACKAGES = ("torch", "numpy", "numba", "zarr", "wandb", "rich", "safetensors")


def fit(recipe: str | os.PathLike[str] | None = None, *overrides: str, config: RunConfig | None = None,
        corpus: str | os.PathLike[str] | None = None, run: str | os.PathLike[str] | None = None,
        console: Console | None = None, **unknown: object) -> Run:
    """Train a recipe on a packed corpus in a new run directory.

    Parameters
    ----------
    recipe: name of a recipe (`phonetrain recipes list`) or path of a TOML file; default: the recipe `default`.
    overrides: "key=value" settings, each a text of its own. config: a RunConfig in place of a recipe.
    corpus: packed corpus; default: the config's, else packed/. run: run directory; default runs/<recipe>-<n>.
    console: where progress is shown; default: what fits the place. unknown: other keywords are refused.

    Returns
    -------
    The run; `run.status` says how it ended: finished, early_stopped, deadline, or the name of a signal.

    A directory whose run ended before its first checkpoint is taken again, and that is said.

    Raises ConfigError, RunExists and phonedata's errors before anything is written, TrainingStopped after.
    """
    began = time.monotonic()
    refuse_keywords(f'fit("{recipe or "default"}", ...)', unknown)
    if recipe is not None and config is not None:
        raise ConfigError(f"fit: got the recipe {recipe} and a config, wanted one of them; load_recipe makes a config")
    if config is None:
        recipe = os.fspath(recipe or "default")
        config = load_recipe(recipe)
    config = with_place(config.override(list(overrides)))
    with joined(config.device) as ranks:
        begun = ranks.share(begun_before(run) if ranks.restarts and ranks.is_main else None)
        if begun is not None and checkpoint.saved_steps(Run(begun)):
            return resume(begun, corpus=corpus, console=console)
        packed = open_corpus(config, corpus)
        if corpus is not None:
            config = config.replaced({"data.corpus": str(corpus)})
        if run is not None:
            check_place(run, packed)
        roles, compute, parts, warnings = prepare(config, packed)
        where = Run(begun) if begun is not None else Run.create(run, recipe or "run") if ranks.is_main else None
        where = seen_by(ranks, where)
        with where.lock(), shown_by(ranks, console) as shown, determinism(config.deterministic):
            if aside := where.set_aside():
                shown.say(aside)
            where.write_text(where.config_path, config.to_toml())
            where.write_json(where.environment_path, environment(packed, compute, where))
            where.append_event("run_started", segment=0, epoch=0, step=0, recipe=recipe, **launch(ranks))
            where.append_event("segment_started", segment=0, epoch=0, step=0)
            train(where, parts, shown, warnings, True, ranks, began)
    return where


def check_place(run: str | os.PathLike[str], corpus: PackedCorpus) -> None:
    """Raises ConfigError for a new run's directory that would scatter its files or spoil the corpus."""
    if not os.fspath(run):
        raise ConfigError("--run: got nothing, wanted a directory for the run")
    if Path(run).resolve().is_relative_to(corpus.path.resolve()):
        raise ConfigError(f"--run {run}: lies in the corpus {corpus.path}, which holds nothing else; "
                          "give another place")


def with_place(config: RunConfig) -> RunConfig:
    """`config` with the whole path of a model of the user's own: it is found from elsewhere too."""
    factory = config.model.factory
    return config if factory is None else config.replaced({"model.factory": placed(factory)})


def launch(ranks: Ranks) -> dict[str, Any]:
    """What torchrun calls this launch: processes that it starts again find their run by it."""
    return {"ranks": ranks.world_size, "launch": launch_id()} if ranks.world_size > 1 else {}


def launch_id() -> str:
    """torchrun's id of this launch; where it was started without `--standalone` or an id, all its launches are called
    `none`, and the process that started this one tells them apart."""
    told = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return f"process {os.getppid()}" if told == "none" else told


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


def seen_by(ranks: Ranks, run: Run | None) -> Run:
    """Rank 0's run, which only rank 0 writes. run: on rank 0."""
    path = ranks.share(None if run is None else run.path)
    return Run(path) if ranks.is_main else Onlooker(path)


def shown_by(ranks: Ranks, console: Console | None) -> Console:
    """The console given or found, on rank 0; the others say nothing."""
    return (console or open_console()) if ranks.is_main else Mute()


def prepare(config: RunConfig, corpus: PackedCorpus) -> tuple[Roles, Compute, Parts, list[str]]:
    """Everything before a run is written: roles, compute, the parts of the first stage, warnings about all stages."""
    roles = choose_roles(corpus, config.data)
    check_window(corpus, config)
    compute = choose_compute(here().device(config.device), config.precision)
    plans = plan_stages(config)
    warnings = looked_through(corpus, roles, plans)
    if compute.device.type == "cuda" and (reason := gpu_layer.why_not(compute.device)) is not None:
        warnings.append(f"Triton makes no kernels here, so layers take torch's own, which is slower ({reason})")
    return roles, compute, assemble(config, plans[0], corpus, roles, compute), warnings


def looked_through(corpus: PackedCorpus, roles: Roles, plans: Sequence[StagePlan]) -> list[str]:
    """Warnings about the data that each stage trains on, said once; raises ConfigError for a stage that cannot train.

    All stages before the first one trains: hours later is late to learn that the last one cannot.
    """
    said: dict[str, str] = {}
    for number, plan in enumerate(plans):
        stage = f"stage.{number}: " if number else ""
        selection = training_selection(corpus, roles, plan.config)
        try:
            told = warnings_before_training(corpus, roles, selection, plan.config)
        except ConfigError as error:
            raise ConfigError(f"{stage}{error}") from None
        for message in told:
            said.setdefault(message, f"{stage}{message}")
    return list(said.values())


def resume(run: str | os.PathLike[str] | None = None, *overrides: str, corpus: str | os.PathLike[str] | None = None,
           from_checkpoint: str | int | None = None, console: Console | None = None, **unknown: object) -> Run:
    """Continue a run from its newest whole checkpoint, exactly as if it had not stopped, or with changes that are said.

    Parameters
    ----------
    run: run directory or name; default: the newest. overrides: "key=value" changes, recorded as events.
    corpus: the packed corpus, where it has moved; it is recognised by its digest.
    from_checkpoint: "step-1200" or 1200: go on from there with the settings of then, leaving what came after aside.

    Raises RunNotFound, CheckpointError (damaged, or of another corpus or window), ConfigError, TrainingStopped.
    """
    began = time.monotonic()
    refuse_keywords("resume(run, ...)", unknown)
    with contextlib.ExitStack() as held:
        found = Run.open(run)
        # The device is asked for first of all; where the run stands, which decides what the others mean, is read later.
        asked = {key: value for key, value in parsed(overrides).items() if key == "device"}
        ranks = held.enter_context(joined(RunConfig.from_toml(found.config_path).replaced(asked).device))
        where = seen_by(ranks, found)
        held.enter_context(where.lock())
        shown = held.enter_context(shown_by(ranks, console))
        saved, problems = find_checkpoint(where, from_checkpoint)
        stage_start = saved.identity["stage"]
        old, newest = RunConfig.from_dict(saved.identity["config"]), RunConfig.from_toml(where.config_path)
        # Who goes back means the settings of then: what was changed later belongs to what is left aside.
        begins = newest if from_checkpoint is None else old.replaced({"data.corpus": newest.data.corpus})
        config = with_place(begins.override(list(overrides), epoch=stage_start))
        if corpus is not None:
            config = config.replaced({"data.corpus": str(corpus)})
        # Against the checkpoint and not against config.toml: a change whose process died before its first checkpoint
        # is made again.
        changes = changes_by_hand(old, config, stage_start)
        check_changes(where, changes, old, config, saved.progress)
        packed = corpus_of(where, config, corpus)
        roles = choose_roles(packed, config.data)
        check_identity(saved, identity(packed, config, roles), where)
        compute = choose_compute(ranks.device(config.device), config.precision)
        held.enter_context(determinism(config.deterministic))
        warnings = problems + restore_machine(saved.identity["machine"], compute)
        plans = plan_stages(config)
        looked_through(packed, roles, plans)
        # Killed after its last checkpoint and before its end was recorded: that is all that is left to do.
        only_the_end = saved.progress.finished and not changes and where.status == "running"
        if saved.progress.epoch >= plans[-1].stop and not only_the_end:
            done = saved.progress.epoch
            more = advice.longer(where, old, max(old.epochs, done) + 10)
            way = f"`{more}` trains longer" if more else "a new run of a recipe with a longer last stage trains longer"
            raise ConfigError(f"{where.path}: {counted(done, 'epoch')} of {plans[-1].stop} wanted are done; {way}")
        # The stage whose parts were saved: at its very end that is not yet the stage of the next epoch.
        plan = next(plan for plan in reversed(plans) if plan.start <= stage_start)
        parts = assemble(config, plan, packed, roles, compute)
        if parts.factory != saved.identity.get("factory", parts.factory):
            warnings.append(f"{config.model.factory}: its text is not the one that the run was trained with so far")
        restore_parts(parts, saved, changes)
        progress = parts.state.progress
        progress.finished = only_the_end
        progress.back_to = progress.back_to if from_checkpoint is None else progress.step
        begun = [event["segment"] for event in where.events() if "segment" in event]
        parent, progress.segment = progress.segment, 1 + max([progress.segment, *begun])
        warnings += checkpoint.mend_best(where, progress)
        where.write_text(where.config_path, config.to_toml())
        where.write_pointer("last", saved.progress.step)
        about = where.read_json(where.environment_path)
        if about.get("corpus"):  # it may lie elsewhere now, and a relative path is seen from where we stand
            about["corpus"]["from_run"] = place_from_run(packed, where)
            where.write_json(where.environment_path, about)
        place = {"segment": progress.segment, "epoch": progress.epoch, "step": progress.step}
        where.append_event("segment_started", parent=parent, checkpoint=saved.path.name, **place)
        for key, before, after in changes:
            where.append_event("config_changed", key=key, old=before, new=after, by="resume", **place)
        position = f"epoch {progress.epoch + 1}, batch {progress.batch}, step {progress.step}"
        shown.say(f"{where.path}: all {progress.epoch} epochs are done; only the end was not recorded" if only_the_end
                  else f"resuming {where.path} at {position}")
        for key, later, then in diff(newest, begins):
            shown.say(f"as it was at {saved.path.name}: {key} {_told(later)} -> {_told(then)}")
        for key, before, after in changes:
            shown.say(told_change(key, before, after, old, config))
        if any(key in ("epochs", "optimizer.lr") or key.startswith("schedule.") for key, _, _ in changes):
            shown.say(f"learning rate: {told_rate(where, parts)}")
        train(where, parts, shown, warnings, bool(changes) or from_checkpoint is not None, ranks, began)
    return where


def told_rate(run: Run, parts: Parts) -> str:
    """The learning rate of the next step, and the last one that was logged."""
    progress, batches = parts.state.progress, parts.train.batches_per_epoch
    rate = float(parts.state.schedule.rates(progress.epoch, batches)[progress.batch]) * progress.rate_scale
    lines = [*run.metrics("train"), *run.metrics("epoch")]
    before = max((line for line in lines if line["step"] <= progress.step), key=lambda line: line["step"], default=None)
    return f"{rate:.3g} from here on" + (f"; the last logged was {before['lr']:.3g}" if before else "")


def _told(value: Any) -> Any:
    return "none" if value is None else value


def environment(corpus: PackedCorpus, compute: Compute, run: Run) -> dict[str, Any]:
    """Versions, device, commit, corpus digests and where the corpus lies from the run; no host and no user name."""
    return {
        "python": platform.python_version(), "packages": {name: version(name) for name in PACKAGES},
        "device": compute.reason, "machine": describe_machine(compute), "commit": commit(),
        "corpus": {"digest": corpus.digest, "from_run": place_from_run(corpus, run),
                   "phonemes": corpus.phonemes.fingerprint, "cmvn": corpus.cmvn["kind"],
                   "partitions": {name: part.digest for name, part in corpus.partitions.items()}},
    }


def commit() -> str | None:
    """The git commit of this package's checkout, `-dirty` where files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        told = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40"], cwd=here, text=True,
                              capture_output=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip() or None if told.returncode == 0 else None

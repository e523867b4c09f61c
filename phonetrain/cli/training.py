"""`phonetrain fit`, `sweep`, `resume`, `audit`, `doctor` and `settings`: training and what prepares it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ..display.tables import print_result
from ..errors import ConfigError, PhonetrainError
from .options import Flag, Json, MaxTime, MovedCorpus, OneRun, Overrides, Quiet, Recipe, RecipeCorpus, StopAt, TrustCode


def fit(
    recipe: Recipe = "default",
    /,
    *,
    corpus: RecipeCorpus = None,
    run: Path | None = None,
    max_time: MaxTime = None,
    stop_at: StopAt = None,
    dry_run: Flag = False,
    find_lr: Flag = False,
    json: Json = False,
    quiet: Quiet = False,
    overrides: Overrides = (),
) -> int:
    """Train a recipe: `phonetrain fit [RECIPE] [key=value ...]`, as `phonetrain fit diamond epochs=5 model.depth=9`.

    Ctrl-C finishes the step, saves, and says how to resume.

    Parameters
    ----------
    run
        The run's directory; default runs/RECIPE-N.
    dry_run
        Show the resolved config, layers, memory and loader, and train nothing.
    find_lr
        Learning-rate range test: 200 steps at growing rates, a suggestion and lr-range.png; no run.
    """
    settings = overrides + _limits(max_time, stop_at)
    if find_lr:
        _refuse_beside_find_lr(run=run, max_time=max_time, stop_at=stop_at, dry_run=dry_run)
    if dry_run:
        from ..planning.dry_run import dry_run as run_dry
        from ..planning.dry_run import dry_run_text

        result = run_dry(recipe, *settings, corpus=corpus)
        print_result(result, dry_run_text(result), json)
        return 0
    if find_lr:
        from ..planning.find_lr import find_lr as search
        from ..planning.find_lr import find_lr_text

        found = search(recipe, *settings, corpus=corpus)
        print_result(found, find_lr_text(found), json)
        return 0
    from ..training.fit import fit

    done = fit(recipe, *settings, corpus=corpus, run=run, console=_console(quiet))
    return _ended(done, json)


def _refuse_beside_find_lr(**options: object) -> None:
    """Options that would silently mean nothing."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise ConfigError(f"--find-lr trains no run, so it does not take {' and '.join(given)}; leave that out")


def sweep(
    recipe: Recipe = "default",
    /,
    *,
    trials: int | None = None,
    jobs: int | None = None,
    max_time: str | None = None,
    corpus: RecipeCorpus = None,
    out: Path | None = None,
    json: Json = False,
    quiet: Flag = False,
    overrides: Overrides = (),
) -> None:
    """Try many settings: `phonetrain sweep RECIPE optimizer.lr=1e-4..1e-2 model.depth=3,4,5 seed=0,1,2 epochs=5`.

    A list is tried value by value, a range is searched in each combination of the lists, seeds are repeated and pooled.
    The same command goes on with a sweep that was stopped, and joins one that runs; needs `pip install optuna`.

    Parameters
    ----------
    trials
        Samples of the ranges in each combination; default 20.
    jobs
        Processes that train at a time; default: one for each GPU.
    max_time
        Begin no trial after this time, and leave those that train to the next call: 3h, 90m.
    out
        The sweep's folder; default sweeps/RECIPE-DIGEST, the same for the same command.
    quiet
        No table.
    """
    from ..planning.sweep import sweep, sweep_text

    try:
        result = sweep(recipe, *overrides, trials=trials, jobs=jobs, max_time=max_time, corpus=corpus, out=out)
    except KeyboardInterrupt:
        if not quiet:  # the processes that --jobs started are
            print("what was trained is kept; the same command goes on with it", file=sys.stderr)
        raise
    if json or not quiet:
        print_result(result, sweep_text(result), json)


def resume(
    run: OneRun = None,
    *,
    corpus: MovedCorpus = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    max_time: MaxTime = None,
    stop_at: StopAt = None,
    trust_code: TrustCode = False,
    json: Json = False,
    quiet: Quiet = False,
    overrides: Overrides = (),
) -> int:
    """Continue a run where it stopped, with the learning rate it had: `phonetrain resume [RUN] [key=value ...]`.

    Parameters
    ----------
    from_
        Go on from this checkpoint, as step-1200, with the settings of then; what came after it is left aside.
    """
    from ..training.resume import resume

    settings = overrides + _limits(max_time, stop_at)
    done = resume(run, *settings, corpus=corpus, from_checkpoint=from_, console=_console(quiet), trust_code=trust_code)
    return _ended(done, json)


def audit(
    run: OneRun = None,
    *,
    step: int | None = None,
    corpus: MovedCorpus = None,
    trust_code: TrustCode = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Train a part of a run again and compare it bit for bit: `phonetrain audit runs/a-1 --step 1200`.

    From the newest kept checkpoint before the step to the next kept one: weights, moments and logged losses. Finds what
    memory or a disk changed without a word; writes nothing. Exit code 1 where something differs.

    Parameters
    ----------
    step
        Audit the part that holds this step; default: the one that ends with the newest checkpoint.
    """
    from ..training.audit import audit, audit_text

    result = audit(run, step, corpus=corpus, console=_console(quiet or json), trust_code=trust_code)
    print_result(result, audit_text(result), json)
    return int(not result["equal"])


def doctor(
    recipe: str | None = None, /, *, corpus: RecipeCorpus = None, json: Json = False, overrides: Overrides = ()
) -> int:
    """Say what this machine offers and what is wrong with it; for a recipe also memory, frames/s and time an epoch.

    Parameters
    ----------
    recipe
        Also measure this recipe on the packed corpus, for some seconds.
    """
    from ..planning.doctor import doctor, doctor_text

    result = doctor(recipe, *overrides, corpus=corpus)
    print_result(result, doctor_text(result), json)
    return int(bool(result["problems"]))


def settings(name: str | None = None, /, *, json: Json = False) -> None:
    """Every setting with its type, its default and what it does: `phonetrain settings [SECTION or SETTING]`.

    Parameters
    ----------
    name
        A section, as optimizer, or one setting, as optimizer.lr; `run` means those in no section.
    """
    from .settings import settings, settings_text

    table = settings(name)
    print_result(table, settings_text(table), json)


def _limits(max_time: str | None, stop_at: str | None) -> tuple[str, ...]:
    limits = {"stop.max_time": max_time, "stop.stop_at": stop_at}
    return tuple(f'{key}="{value}"' for key, value in limits.items() if value is not None)


def _is_main() -> bool:
    """Of several processes (torchrun sets RANK) the first one talks to people."""
    return os.environ.get("RANK", "0") == "0"


def _console(quiet: bool) -> Any:
    from ..console.open import open_console

    return open_console("quiet" if quiet or not _is_main() else "auto")


def _ended(run: Any, as_json: bool) -> int:
    """Print what a run came to; the exit code is that of the signal that ended it."""
    status, best = run.status, run.best()
    code = 128 + getattr(signal, status) if status.startswith("SIG") and hasattr(signal, status) else 0
    if not _is_main():
        return code
    result = {"run": str(run.path), "status": status, "best": best}
    with contextlib.suppress(OSError, PhonetrainError):
        # Its terminal was closed, or its reader left: the run is saved all the same, and the code says how it ended.
        print_result(result, f"{run.path}: {status}", as_json)
    return code

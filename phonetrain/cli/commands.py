"""What each `phonetrain` command does: parse, call the function of the same name, print its result to stdout."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from ..errors import ConfigError, PhonetrainError
from ..results.tables import print_result, print_text
from .recipes import Flag, Overrides, recipes
from .runs import runs as list_of_runs

app = App(
    name="phonetrain",
    help="Turns context windows into phonemes: train, resume, evaluate, predict, report. "
    "With nothing given, `fit` finds packed/ and trains the default recipe; "
    "the others take the run under runs/ that was trained last.",
    help_format="markdown",
    version=lambda: _version(),
)
app.command(recipes)
app.command(list_of_runs)


@app.command
def fit(
    recipe: str = "default",
    /,
    *,
    corpus: Path | None = None,
    run: Path | None = None,
    max_time: str | None = None,
    stop_at: str | None = None,
    dry_run: Flag = False,
    find_lr: Flag = False,
    json: Flag = False,
    quiet: Flag = False,
    overrides: Overrides = (),
) -> int:
    """Train a recipe: `phonetrain fit [RECIPE] [key=value ...]`, as `phonetrain fit diamond epochs=5 model.depth=9`.

    Ctrl-C finishes the step, saves, and says how to resume.

    Parameters
    ----------
    recipe
        A name from `phonetrain recipes list`, or a TOML file.
    corpus
        The packed corpus; default: the recipe's, else packed/.
    run
        The run's directory; default runs/RECIPE-N.
    max_time
        End, saved and scored, before this much time has passed: 2h, 90m, 45s. The start of Python, some seconds, is
        not counted.
    stop_at
        End, saved and scored, before this time of day: 23:30.
    dry_run
        Show the resolved config, layers, memory and loader, and train nothing.
    find_lr
        Learning-rate range test: 200 steps at growing rates, a suggestion and lr-range.png; no run.
    json
        Print the result as JSON.
    quiet
        No progress, warnings only.
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


@app.command
def sweep(
    recipe: str = "default",
    /,
    *,
    trials: int | None = None,
    jobs: int | None = None,
    max_time: str | None = None,
    corpus: Path | None = None,
    out: Path | None = None,
    json: Flag = False,
    quiet: Flag = False,
    overrides: Overrides = (),
) -> None:
    """Try many settings: `phonetrain sweep RECIPE optimizer.lr=1e-4..1e-2 model.depth=3,4,5 seed=0,1,2 epochs=5`.

    A list is tried value by value, a range is searched in each combination of the lists, seeds are repeated and pooled.
    The same command goes on with a sweep that was stopped, and joins one that runs; needs `pip install optuna`.

    Parameters
    ----------
    recipe
        A name from `phonetrain recipes list`, or a TOML file.
    trials
        Samples of the ranges in each combination; default 20.
    jobs
        Processes that train at a time; default: one for each GPU.
    max_time
        Begin no trial after this time, and leave those that train to the next call: 3h, 90m.
    corpus
        The packed corpus; default: the recipe's, else packed/.
    out
        The sweep's folder; default sweeps/RECIPE-DIGEST, the same for the same command.
    json
        Print the result as JSON.
    quiet
        No table.
    """
    from ..planning.sweep import sweep, sweep_text

    result = sweep(recipe, *overrides, trials=trials, jobs=jobs, max_time=max_time, corpus=corpus, out=out)
    if json or not quiet:
        print_result(result, sweep_text(result), json)


@app.command
def resume(
    run: Path | None = None,
    *,
    corpus: Path | None = None,
    from_: Annotated[str | None, Parameter(name="--from")] = None,
    max_time: str | None = None,
    stop_at: str | None = None,
    trust_code: Flag = False,
    json: Flag = False,
    quiet: Flag = False,
    overrides: Overrides = (),
) -> int:
    """Continue a run where it stopped, with the learning rate it had: `phonetrain resume [RUN] [key=value ...]`.

    Parameters
    ----------
    run
        The run's directory or name; default: the one under runs/ trained last.
    corpus
        The packed corpus, where it has moved; it is recognised by its digest.
    from_
        Go on from this checkpoint, as step-1200, with the settings of then; what came after it is left aside.
    max_time
        End, saved and scored, before this much time has passed: 2h, 90m, 45s. The start of Python, some seconds, is
        not counted.
    stop_at
        End, saved and scored, before this time of day: 23:30.
    trust_code
        Run the code of its model.factory, which you have read, and remember that you trust it on this machine.
    json
        Print the result as JSON.
    quiet
        No progress, warnings only.
    """
    from ..training.resume import resume

    settings = overrides + _limits(max_time, stop_at)
    done = resume(run, *settings, corpus=corpus, from_checkpoint=from_, console=_console(quiet), trust_code=trust_code)
    return _ended(done, json)


@app.command
def evaluate(
    run: Path | None = None,
    *,
    partition: str | None = None,
    checkpoint: str = "best",
    corpus: Path | None = None,
    device: str = "auto",
    trust_code: Flag = False,
    json: Flag = False,
) -> None:
    """Score a run's best checkpoint on its dev partition: accuracy with its interval, phone errors, what goes wrong.

    In fp32, as `phonetrain evaluate runs/a-1 --partition dev-other`.

    Parameters
    ----------
    run
        The run's directory or name; default: the one under runs/ trained last.
    partition
        A labelled partition; default: the run's dev.
    checkpoint
        best, last, or a step as step-1200.
    corpus
        Another packed corpus with the same phonemes.
    device
        auto, cpu, cuda, cuda:1 or mps.
    trust_code
        Run the code of its model.factory, which you have read, and remember that you trust it on this machine.
    json
        Print everything as JSON, the confusion matrix included.
    """
    from ..results.evaluate import evaluate
    from ..results.tables import evaluation_text

    result = evaluate(run, partition, checkpoint, corpus, device, trust_code)
    print_result(result, evaluation_text(result), json)


@app.command
def compare(
    *runs: Path,
    partition: str | None = None,
    checkpoint: str = "best",
    corpus: Path | None = None,
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Say which of several runs is better, how sure that is, and where the difference comes from.

    As `phonetrain compare runs/a-1 runs/b-1 runs/b-2`: the others against the first; runs that differ only in the seed
    are one row. Paired bootstrap over utterances; kept evaluations are used.

    Parameters
    ----------
    runs
        Run directories or names, two at least, each with @CHECKPOINT if wanted.
    partition
        A labelled partition; default: the dev of the runs.
    checkpoint
        best, last, or a step as step-1200.
    corpus
        Another packed corpus with the same phonemes, for all of them.
    device
        auto, cpu, cuda, cuda:1.
    json
        Print everything as JSON, with all phonemes and speakers.
    """
    from ..results.compare import compare
    from ..results.tables import comparison_text

    result = compare(runs, partition, checkpoint, corpus, device)
    print_result(result, comparison_text(result), json)


@app.command
def predict(
    *runs: Path,
    partition: str | None = None,
    out: Path | None = None,
    checkpoint: str = "best",
    corpus: Path | None = None,
    device: str = "auto",
    as_: Annotated[Literal["csv", "npy", "ark", "ctm", "textgrid", "text", "json"], Parameter(name="--as")] = "csv",
    labels: Literal["phoneme", "index"] = "phoneme",
    header: str = "id,label",
    smooth: Literal["viterbi", "median", "none"] = "none",
    scale: float | None = None,
    average: Literal["log", "probability"] = "log",
    values: Literal["log-posterior", "posterior", "log-likelihood"] = "log-posterior",
    max_parameters: int | None = None,
    model: Path | None = None,
    replace: Flag = False,
    trust_code: Flag = False,
    json: Flag = False,
) -> None:
    """Label every frame of a partition and write the submission CSV, or posteriors for a decoder; prints the path.

    Several runs are averaged, as `phonetrain predict runs/a-1 runs/a-2@last --smooth viterbi`.

    Parameters
    ----------
    runs
        Run directories or names, each with @CHECKPOINT if wanted; default: the one under runs/ trained last.
    partition
        Default: the run's test, or the only one of another corpus.
    out
        The file; default RUN/predictions/PARTITION.csv.
    checkpoint
        best, last, or a step as step-1200.
    corpus
        Another packed corpus with the same phonemes.
    device
        auto, cpu, cuda, cuda:1 or mps.
    as_
        csv (a label a frame), npy or ark (posteriors), ctm, textgrid, text or json (phones with times).
    labels
        phoneme strings, or the class index.
    header
        The two column names of the CSV, as Id,Class.
    smooth
        viterbi (the best path, by which phone follows which in training), median (of 5 frames), none.
    scale
        Of log posteriors against the transitions of viterbi; default 1.5.
    average
        Of several runs: the mean of log posteriors, or of probabilities.
    values
        What npy and ark hold; log-likelihood is the log posterior minus the log prior.
    max_parameters
        The most parameters that all runs may have together.
    model
        An exported model.onnx in place of runs, as `phonetrain predict --model model.onnx --corpus packed`.
    replace
        Replace what is at --out already.
    trust_code
        Run the code of its model.factory, which you have read, and remember that you trust it on this machine.
    json
        Print the result as JSON.
    """
    from ..results.predict import SCALE, predict

    path = predict(
        runs, partition, out, checkpoint, corpus, device, labels, header, form=as_, smooth=smooth,
        scale=SCALE if scale is None else scale, average=average, values=values, max_parameters=max_parameters,
        model=model, replace=replace, trust_code=trust_code,
    )  # fmt: skip
    print_result({"predictions": str(path)}, str(path), json)


@app.command
def report(*runs: Path, out: Path | None = None, baseline: Path | None = None, json: Flag = False) -> None:
    """Write one self-contained HTML page about a run, or about several with an ablation table beside it; prints paths.

    Parameters
    ----------
    runs
        Run directories or names; default: the one under runs/ trained last.
    out
        The HTML file; default RUN/report.html, for several runs report-NAME-NAME.html. An edited one is never replaced.
    baseline
        Of several runs the one that the others are compared with; default: the oldest.
    json
        Print the paths as JSON.
    """
    from ..results.report import report, table_beside

    path = report(runs, out, baseline)
    result = {"report": str(path)} | ({"table": str(table_beside(path))} if len(runs) > 1 else {})
    print_result(result, "\n".join(result.values()), json)


@app.command
def handin(*runs: Path, out: Path = Path("handin.zip"), corpus: Path | None = None, json: Flag = False) -> None:
    """Write one zip to hand in: README, experiment log, architecture, settings, predictions, curves, reports.

    Nothing private goes in: no host, user, key or absolute path.

    Parameters
    ----------
    runs
        Run directories or names, in the order of the log; default: the one under runs/ trained last.
    out
        The zip.
    corpus
        The packed corpus, where it has moved.
    json
        Print the path as JSON.
    """
    from ..results.handin import handin

    path = handin(runs, out, corpus)
    print_result({"handin": str(path)}, str(path), json)


@app.command
def upload(
    run: Path | None = None, *, to: Literal["wandb", "tensorboard", "trackio"] = "wandb", json: Flag = False
) -> None:
    """Replay a run's numbers into wandb, TensorBoard or trackio as one curve; a second call adds only what is new.

    Parameters
    ----------
    run
        The run's directory or name; default: the one under runs/ trained last.
    to
        wandb (needs `wandb login`), tensorboard (event files in RUN/tensorboard) or trackio (on this machine).
    json
        Print what was sent as JSON.
    """
    from ..runs.upload import upload

    sent = upload(run, to)
    print_result(sent, f"{sent['where']}: {sent['added']:,} of {sent['lines']:,} lines added", json)


@app.command
def submit(run: Path | None = None, *, competition: str = "COMPETITION", json: Flag = False) -> None:
    """Print the `kaggle` commands that submit a run's predictions.

    Parameters
    ----------
    run
        The run's directory or name; default: the one under runs/ trained last.
    competition
        The last part of the competition's address.
    json
        Print them as JSON.
    """
    from ..results.handin import submit_commands

    commands = submit_commands(run, competition)
    print_result({"commands": commands.splitlines()}, commands, json)


@app.command
def explain(run: Path | None = None, *, json: Flag = False) -> None:
    """Tell a run's life in plain sentences: segments, what changed, why it stopped, what to do next.

    Parameters
    ----------
    run
        The run's directory or name; default: the one under runs/ trained last.
    json
        Print the sentences as JSON, and the verdict with its command.
    """
    from dataclasses import asdict

    from ..runs.directory import Run
    from ..runs.explain import explain
    from ..runs.verdict import verdict

    opened = Run.open(run)
    sentences = explain(opened)
    print_result({"sentences": sentences, "verdict": asdict(verdict(opened))}, "\n".join(sentences), json)


@app.command
def doctor(
    recipe: str | None = None, /, *, corpus: Path | None = None, json: Flag = False, overrides: Overrides = ()
) -> int:
    """Say what this machine offers and what is wrong with it; for a recipe also memory, frames/s and time an epoch.

    Parameters
    ----------
    recipe
        Also measure this recipe on the packed corpus, for some seconds.
    corpus
        The packed corpus; default: the recipe's, else packed/.
    json
        Print the findings as JSON.
    """
    from ..planning.doctor import doctor, doctor_text

    result = doctor(recipe, *overrides, corpus=corpus)
    print_result(result, doctor_text(result), json)
    return int(bool(result["problems"]))


@app.command
def export(
    run: Path | None = None,
    *,
    out: Path | None = None,
    checkpoint: str = "best",
    corpus: Path | None = None,
    onnx: bool | None = None,
    replace: Flag = False,
    trust_code: Flag = False,
    json: Flag = False,
) -> None:
    """Write a run's model for use without phonetrain: programs, weights, what they expect, and a model card.

    As `phonetrain export runs/a-1 --out model`: model.pt2, model.onnx, model.safetensors, model.json, MODEL_CARD.md.

    Parameters
    ----------
    run
        The run's directory or name; default: the one under runs/ trained last.
    out
        The directory; default RUN/export.
    checkpoint
        best, last, or a step as step-1200.
    corpus
        The packed corpus that the run was trained on, where it has moved.
    onnx
        Insist on model.onnx, or leave it out; by default it is written where the extra [onnx] is installed.
    replace
        Replace what is at --out already.
    trust_code
        Run the code of its model.factory, which you have read, and remember that you trust it on this machine.
    json
        Print the path as JSON.
    """
    from ..results.export import export

    path = export(run, out, checkpoint, onnx, corpus, replace=replace, trust_code=trust_code)
    print_result({"export": str(path)}, str(path), json)


@app.command
def suspects(
    run: Path | None = None,
    *,
    partition: str | None = None,
    folds: int | None = None,
    share: float | None = None,
    out: Path | None = None,
    replace: Flag = False,
    checkpoint: str = "best",
    corpus: Path | None = None,
    device: str = "auto",
    json: Flag = False,
) -> None:
    """Say where labels look wrong: segments and utterances that the net contradicts, ranked, with a skip list.

    Writes a folder with the lists, TextGrids of what is given and what is heard, a picture, and skip.txt for
    `phonedata pack RAW PACKED --skip runs/a-1/suspects/skip.txt`. As `phonetrain suspects runs/a-1 --folds 3`.

    Parameters
    ----------
    run
        The run's directory or name; default: the one under runs/ trained last.
    partition
        A labelled partition; default: what the run was trained on.
    folds
        Train this many nets, each without one part of the training utterances, and ask each about that part: a net
        remembers what it was trained on, wrong labels too.
    share
        Of the segments, how many are listed; default 0.02.
    out
        The folder; default RUN/suspects.
    replace
        Replace what is at --out already.
    checkpoint
        best, last, or a step as step-1200.
    corpus
        Another packed corpus with the same phonemes.
    device
        auto, cpu, cuda, cuda:1.
    json
        Print everything as JSON.
    """
    from ..results.suspects import SHARE, suspects
    from ..results.tables import suspects_text

    result = suspects(
        run, partition, checkpoint, corpus, device, folds=folds, share=SHARE if share is None else share, out=out,
        replace=replace,
    )  # fmt: skip
    print_result(result, suspects_text(result), json)


@app.command
def transcribe(
    *files: Path,
    run: Path | None = None,
    checkpoint: str = "best",
    corpus: Path | None = None,
    device: str = "auto",
    as_: Annotated[Literal["ctm", "textgrid", "text", "json", "csv"], Parameter(name="--as")] = "ctm",
    out: Path | None = None,
    replace: Flag = False,
    smooth: Literal["viterbi", "median", "none"] = "viterbi",
    scale: float | None = None,
    json: Flag = False,
) -> None:
    """Say which phones audio files hold, and when: `phonetrain transcribe a.wav b.flac --as textgrid`.

    Through the front end that the corpus of the run records; needs `pip install 'phonedata[audio]'`. Prints the phones,
    or writes them to --out.

    Parameters
    ----------
    files
        Mono .wav or .flac files; one of another sampling rate is resampled.
    run
        The run's directory or name; default: the one under runs/ trained last.
    checkpoint
        best, last, or a step as step-1200.
    corpus
        The packed corpus that the run was trained on, where it has moved.
    device
        auto, cpu, cuda, cuda:1.
    as_
        ctm, text (phones without times and silence), json, csv (a label a frame), textgrid (a folder of TextGrids).
    out
        The file, or for textgrid the folder; default for textgrid: transcripts.
    replace
        Replace what is at --out already.
    smooth
        viterbi (the best path, by which phone follows which in training), median (of 5 frames), none.
    scale
        Of log posteriors against the transitions of viterbi; default 1.5.
    json
        Print the phones as JSON; of what is written, its path.
    """
    from ..results.predict import SCALE
    from ..results.transcribe import transcribe

    text = transcribe(
        files, run, out, checkpoint, corpus, device, form="json" if json and out is None and as_ == "ctm" else as_,
        smooth=smooth, scale=SCALE if scale is None else scale, replace=replace,
    )  # fmt: skip
    if isinstance(text, Path):
        print_result({"transcripts": str(text)}, str(text), json)
    else:
        print_text(text)


@app.command
def settings(name: str | None = None, /, *, json: Flag = False) -> None:
    """Every setting with its type, its default and what it does: `phonetrain settings [SECTION or SETTING]`.

    Parameters
    ----------
    name
        A section, as optimizer, or one setting, as optimizer.lr; `run` means those in no section.
    json
        Print them as JSON.
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


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("phonedata")
    except PackageNotFoundError:
        from phonedata import __version__

        return __version__

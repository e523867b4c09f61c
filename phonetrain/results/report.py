"""Run directories -> one self-contained HTML page that could be handed in, and for several runs an ablation table.

Every number in it is read from the run's own files (metrics, events, built, environment, kept evaluations); only where
the best checkpoint was never scored on dev in fp32 it is scored now, for the confusion matrix.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from phonedata.files import write_files

from ..config.stages import flattened
from ..config.toml import read_text
from ..console.open import show_picture
from ..errors import PhonetrainError, RunNotFound, writing
from ..plots import as_image, as_png, as_svg, draw_confusion, draw_run, draw_runs
from ..runs.directory import Run
from ..runs.explain import life as life_of
from ..runs.history import where_scored
from ..runs.next_commands import fit_words, settings
from ..text import clock, counted, percent, short
from ..training.checkpoint import best_step
from . import html as page
from .evaluate import evaluate, kept_evaluation

Scores = dict[str, Any] | str  # an evaluation, or a sentence that says why there is none
Runs = Run | str | os.PathLike[str] | Sequence["Run | str | os.PathLike[str]"] | None
UNCOMPARED = ("data.corpus", "version")
NO_EXPERIMENT = ("tracking.", "checkpoint.", "stop.", "schedule.on_extend")  # they change no number of an epoch


def report(runs: Runs = None, out: str | os.PathLike[str] | None = None) -> Path:
    """Write the page and return its path.

    runs: one run or several (objects, directories or names); None or nothing takes the newest. out: the HTML file;
    default report.html in the run directory, beside its curves.png, for several runs report-NAME-NAME.html here, with a
    Markdown table beside it (`.md`).
    """
    if runs is None or isinstance(runs, (Run, str, os.PathLike)):
        runs = [Run.open(runs)]
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs] or [Run.open()]
    if not any(run.metrics() for run in opened):
        raise RunNotFound(f"{opened[0].path}: no numbers are logged in it yet; `phonetrain explain` says how it stands")
    if len(opened) == 1:
        path = Path(out) if out is not None else opened[0].report_path
        contents = {path: one_run(opened[0]).encode()}
        if out is None:
            contents[opened[0].curves_path] = as_png(draw_run(opened[0]))
    else:
        path = Path(out) if out is not None else named_after(opened)
        contents = {path: several_runs(opened).encode(), table_beside(path): ablation_markdown(opened).encode()}
    with writing(path, "give another place with --out FILE"):
        write_files(contents)
    show_picture(lambda: as_png(draw_run(opened[0]) if len(opened) == 1 else draw_runs(opened), 100))
    return path


def named_after(runs: Sequence[Run]) -> Path:
    """The page of several runs, here: report-default-1-default-2.html, so that no two sets of runs share one."""
    names = [run.name for run in runs]
    more = [f"{len(names) - 3}-more"] * (len(names) > 3)
    return Path("-".join(["report", *names[: 3 if more else len(names)], *more]) + ".html")


def table_beside(path: Path) -> Path:
    """The Markdown table of the page `path` about several runs."""
    return path.with_suffix(".md")


def one_run(run: Run) -> str:
    """The page of one run."""
    numbers, scores = summary(run), best_evaluation(run)
    sections = [page.section(title, *content(run, scores)) for title, content in SECTIONS]
    subtitle = f"phonetrain run, recipe {numbers['recipe']}, {numbers['status']}"
    return page.page(run.name, subtitle, [headline(numbers, scores), *sections])


def several_runs(runs: Sequence[Run]) -> str:
    """The page of several runs: the table, their curves over each other, and how each differs."""
    header, rows, best = ablation(runs)
    sections = [
        page.section("Comparison", page.table(header, rows, best, words=2), page.paragraph(CONDITIONS, "soft")),
        page.section("Learning curves", as_svg(draw_runs(runs), "Dev loss and accuracy of all runs")),
    ]
    for run in runs:
        sections.append(page.section(run.name, page.life(life_of(run))))
    return page.page(f"{len(runs)} runs", ", ".join(run.name for run in runs), sections)


CONDITIONS = (
    "Dev frame accuracy and loss are of the best score, made in the training precision unless a row says fp32; "
    "frames seen counts every training frame as often as it was used. Changes are against the first run. One seed a "
    "row: a difference smaller than the spread between seeds says nothing."
)


def ablation_markdown(runs: Sequence[Run]) -> str:
    """The ablation table as Markdown, with its conditions and the command of every row."""
    header, rows, _ = ablation(runs)
    commands = "\n".join(f"    {shell_command(run)}    # {'; '.join([run.name, *by_hand(run)])}" for run in runs)
    return f"{page.markdown_table(header, rows, words=2)}\n{CONDITIONS}\n\n{commands}\n"


def by_hand(run: Run) -> list[str]:
    """What was changed on resume, and at which step: the command gives the last value from the first step on."""
    spans = {span.segment: span for span in run.lineage()}
    return [
        f"{event['key']} was {show(event['old'])} up to step {event['step']:,}, then {show(event['new'])}"
        for event in run.events("config_changed")
        if event.get("by") == "resume" and event.get("segment") in spans and event["step"] > 0
    ]


def ablation(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], int | None]:
    """Header, rows and the place of the best run of the table that compares runs."""
    header = ["run", "what changed", "parameters", "epochs", "frames seen", "train %", "dev %", "dev loss", "time"]
    first = settings(runs[0])
    rows, scores = [], []
    for run in runs:
        told = summary(run)
        changed = "; ".join(
            f"{key} {show(old)} → {show(new)}"
            for key, old, new in changes(first, settings(run))
            if not key.startswith(NO_EXPERIMENT)
        )
        exact = kept_evaluation(run)
        dev = exact["accuracy"] if exact else told["best_accuracy"]
        scores.append(-1.0 if dev is None else dev)
        rows.append([
            run.name, changed or ("(the first)" if run is runs[0] else "nothing"), count(told["parameters"]),
            str(told["epochs"]), short(told["frames"]), percent(told["train_accuracy"]),
            percent(dev) + (" fp32" if exact else ""),
            number(exact["loss"] if exact else told["best_loss"]), clock(told["seconds"]),
        ])  # fmt: skip
    return header, rows, int(np.argmax(scores)) if max(scores) >= 0 else None


def summary(run: Run) -> dict[str, Any]:
    """The numbers of a run that stand for the whole: of its kept life, best epoch as scored in training."""
    epochs, train, best = run.metrics("epoch"), run.metrics("train"), run.best()
    built = run.read_json(run.built_path)
    started = next(iter(run.events("run_started")), {})
    best = best or {}
    paces = [line["frames_per_second"] for line in train if "frames_per_second" in line]
    return {
        "recipe": started.get("recipe") or "none",
        "status": run.status,
        "epochs": len(epochs),
        "best_epoch": best.get("epoch"),
        "best_in": where_scored(best) if best else None,
        "best_accuracy": best.get("dev_accuracy"),
        "best_loss": best.get("dev_loss"),
        "train_accuracy": best.get("train_accuracy"),
        "seconds": sum(line.get("seconds") or 0.0 for line in epochs),
        "frames": sum(line.get("frames") or 0 for line in epochs),
        "frames_per_second": float(np.median(paces)) if paces else None,
        "parameters": (built.get("model") or {}).get("parameters"),
        "precision": built.get("precision"),
        "partition": (built.get("scoring") or {}).get("partitions"),
    }


def best_evaluation(run: Run) -> Scores:
    """The same, made now where it is missing; a sentence where it cannot be made."""
    if kept := kept_evaluation(run):
        return kept
    if best_step(run) is None:
        return "No epoch has been scored yet, so there is no best checkpoint to look at."
    from phonedata import PhonedataError

    try:
        print(f"{run.path}: scoring its best checkpoint on dev, once, for the confusion matrix", file=sys.stderr)
        return evaluate(run)
    except (PhonetrainError, PhonedataError) as error:
        print(f"warning: it could not be scored: {error}", file=sys.stderr)
        return f"The best checkpoint could not be scored for this report: {error}"


def headline(told: dict[str, Any], scores: Scores) -> str:
    pairs = []
    if isinstance(scores, dict):
        pairs += [
            (f"{percent(scores['accuracy'])} %", f"frame accuracy on {scores['partition']}, fp32"),
            (f"{percent(scores['error_rate'])} %", "frame error rate"),
            (number(scores["loss"]), "loss, nats a frame"),
            (f"{percent(scores['majority']['share'])} %", f"answering {scores['majority']['phoneme']} everywhere"),
        ]
    elif told["best_accuracy"] is not None:
        where = f"best dev frame accuracy, {told['best_in']}, {told['precision']}"
        pairs.append((f"{percent(told['best_accuracy'])} %", where))
    pairs += [
        (count(told["parameters"]), "parameters"),
        (str(told["epochs"]), f"epoch{'s' * (told['epochs'] != 1)}, {short(told['frames'])} frames seen"),
        (clock(told["seconds"]), "training time, without scoring"),
    ]
    if told["frames_per_second"]:
        pairs.append((f"{short(told['frames_per_second'])}/s", f"frames, median, {told['precision']}"))
    return page.numbers(pairs)


def curves(run: Run, scores: Scores) -> list[str]:
    return [
        as_svg(draw_run(run), f"Learning curves of {run.name}"),
        page.paragraph("Train numbers are means since the log line before, with dropout and masks on; dev numbers are "
                       "of the scored weights after each epoch, in the training precision. Dashed lines are resumes "
                       "and changes.", "soft"),
    ]  # fmt: skip


def confusions(run: Run, scores: Scores) -> list[str]:
    if isinstance(scores, str):
        return [page.paragraph(scores)]
    symbols = [row["phoneme"] for row in scores["phonemes"]]
    pairs = [(f"{each['phoneme']} heard as {each['heard_as']}", f"{each['frames']:,}",
              f"{percent(each['share_of_phoneme'])} %", f"{percent(each['share_of_errors'])} %")
             for each in scores["confused"]]  # fmt: skip
    conditions = (
        f"{scores['partition']}: {scores['utterances']:,} utterances, {scores['frames']:,} frames, every frame once; "
        f"{scores['checkpoint']} after {counted(scores['epochs_done'], 'epoch')}, {scores['weights']} weights, fp32 on "
        f"{scores['device']}; corpus digest {scores['corpus_digest']}."
    )
    picture = as_image(draw_confusion(np.array(scores["confusion"]), symbols), "Confusion matrix")
    header = ("most confused", "frames", "of the phoneme", "of all errors")
    return [page.paragraph(conditions, "soft"), f'<div class="narrow">{picture}</div>', page.table(header, pairs)]


def phonemes(run: Run, scores: Scores) -> list[str]:
    if isinstance(scores, str):
        return [page.paragraph(scores)]
    rows = [(row["phoneme"], f"{row['frames']:,}", page.share_bar(row["recall"]), page.share_bar(row["precision"]))
            for row in scores["phonemes"]]  # fmt: skip
    half = -(-len(rows) // 2)
    header = ("phoneme", "frames", "recall", "precision")
    tables = [page.table(header, part) for part in (rows[:half], rows[half:]) if part]
    return [f'<div class="columns">{"".join(tables)}</div>']


def epochs(run: Run, scores: Scores) -> list[str]:
    lines = run.scores()
    best = [index for index, line in enumerate(lines) if line.get("best")]
    rows = [
        (where_scored(line).removeprefix("epoch "), number(line.get("train_loss")), percent(line.get("train_accuracy")),
         number(line.get("dev_loss")), percent(line.get("dev_accuracy")), f"{line['lr']:.2e}" if "lr" in line else "–",
         clock(line["seconds"]) if "seconds" in line else "–", line.get("segment", 0) + 1)
        for line in lines
    ]  # fmt: skip
    header = ("epoch", "train loss", "train %", "dev loss", "dev %", "learning rate", "time", "part")
    return [page.table(header, rows, best[-1] if best else None)]


def built(run: Run, scores: Scores) -> list[str]:
    settings = run.read_json(run.built_path)
    layers = (settings.get("model") or {}).pop("layers", None)
    parts = [page.paragraph("Read from the live objects when training began, not from the settings.", "soft")]
    if layers:
        rows = [(row["layer"], " ".join(filter(None, (row.get("norm"), row.get("activation")))), f"{row['inputs']:,}",
                 f"{row['outputs']:,}", f"{row.get('dropout') or 0:g}", f"{row['parameters']:,}")
                for row in layers]  # fmt: skip
        parts.append(page.table(("layer", "then", "inputs", "outputs", "dropout", "parameters"), rows, words=2))
    pairs = [(key, show(value)) for key, value in flattened(settings)]
    return [*parts, page.table(("what", "value"), pairs, words=2)]


def configuration(run: Run, scores: Scores) -> list[str]:
    return [page.verbatim(read_text(run.config_path))]


def environment(run: Run, scores: Scores) -> list[str]:
    return [page.verbatim(json.dumps(run.read_json(run.environment_path), indent=2))]


def life(run: Run, scores: Scores) -> list[str]:
    return [page.life(life_of(run))]


# The sections of a run's page, in order: title, and a function of (run, its best evaluation) that gives HTML.
SECTIONS: list[tuple[str, Callable[[Run, Scores], list[str]]]] = [
    ("Learning curves", curves),
    ("What happened", life),
    ("Epochs", epochs),
    ("Confusions", confusions),
    ("Phonemes", phonemes),
    ("What was really built", built),
    ("Settings", configuration),
    ("Environment", environment),
]


def shell_command(run: Run) -> str:
    """The command, for a POSIX shell, that trains under the run's settings again."""
    words, options = fit_words(run)
    return shlex.join(
        ["phonetrain", "fit", *words, *(part for key, value in options.items() for part in (f"--{key}", value))]
    )


def changes(first: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, value in the first, value in the other) of every setting that differs; None where it is not set."""
    keys = [*first, *(key for key in other if key not in first)]
    both = [(key, first.get(key), other.get(key)) for key in keys if key not in UNCOMPARED]
    return [each for each in both if page.text(each[1]) != page.text(each[2])]


def show(value: Any) -> str:
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def number(value: float | None) -> str:
    return "–" if value is None else f"{float(value):.4f}"  # a JSON file has NaN as a text

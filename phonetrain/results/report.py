"""Run directories -> one self-contained HTML page that could be handed in; of several runs, a table that compares them.

Every number in it is read from the run's own files (metrics, events, built, environment, kept evaluations); only where
the best checkpoint was never scored on dev in fp32 it is scored now. A file that somebody edited is never replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phonedata import PhonedataError
from phonedata.files import write_files

from ..config.run_config import RunConfig
from ..config.stages import flattened
from ..config.toml import read_text
from ..console.open import show_picture
from ..errors import ConfigError, PhonetrainError, RunNotFound, writing
from ..plots import as_png, as_svg, draw_confusion, draw_run, draw_runs, draw_utterance
from ..runs.directory import Run
from ..runs.experiment import changes as changes_between
from ..runs.experiment import experiment, group_runs, shown
from ..runs.explain import life as life_of
from ..runs.history import where_scored
from ..runs.next_commands import fit_words, setting_text
from ..runs.verdict import verdict
from ..text import clock, counted, percent, short
from ..training.checkpoint import best_step
from . import html as page
from .compare import compare
from .evaluate import evaluate, kept_evaluation
from .posteriors import utterance_posteriors
from .sounds import ORDER, sound_classes
from .trained import open_trained

MOST_DRAWN = 100  # classes of a confusion matrix that can still be read
MOST_SECONDS = 6  # of the utterance that is drawn
Scores = dict[str, Any] | str  # an evaluation, or a sentence that says why there is none
Runs = Run | str | os.PathLike[str] | Sequence["Run | str | os.PathLike[str]"] | None
UNCOMPARED = ("data.corpus", "version")
NO_EXPERIMENT = ("tracking.", "checkpoint.", "stop.", "schedule.on_extend")  # they change no number of an epoch


def report(
    runs: Runs = None, out: str | os.PathLike[str] | None = None, baseline: Run | str | os.PathLike[str] | None = None
) -> Path:
    """Write the page and return its path.

    runs: one run or several (objects, directories or names); None or nothing takes the newest. out: the HTML file;
    default report.html in the run directory, beside its curves.png, for several runs report-NAME-NAME.html here, with a
    Markdown table beside it (`.md`). baseline: of several, the run that the others are compared with; default the
    oldest. Raises RunNotFound, ConfigError, and PhonetrainError where a file there was edited since it was written.
    """
    if runs is None or isinstance(runs, (Run, str, os.PathLike)):
        runs = [Run.open(runs)]
    opened = [run if isinstance(run, Run) else Run.open(run) for run in runs] or [Run.open()]
    if not any(run.metrics() for run in opened):
        raise RunNotFound(f"{opened[0].path}: no numbers are logged in it yet; `phonetrain explain` says how it stands")
    if len(opened) == 1:
        if baseline is not None:
            raise ConfigError("baseline: wanted two runs or more to compare with it; leave it out for one")
        path = Path(out) if out is not None else opened[0].report_path
        contents = {path: one_run(opened[0]).encode()}
        if out is None:
            contents[opened[0].curves_path] = as_png(draw_run(opened[0]))
    else:
        ordered = baseline_first(opened, baseline)
        path = Path(out) if out is not None else named_after(opened)
        table = Table.of(ordered)
        contents = {path: several_runs(ordered, table).encode(), table_beside(path): table.markdown().encode()}
    for file in contents:
        refuse_edited(file)
    with writing(path, "give another place with --out FILE"):
        write_files({file: sealed(content) for file, content in contents.items()})
    show_picture(lambda: as_png(draw_run(opened[0]) if len(opened) == 1 else draw_runs(opened), 100))
    return path


SEAL = b"\n<!-- written by phonetrain report, sha256 of all before: %s -->\n"


def sealed(content: bytes) -> bytes:
    """A file with its digest at its end, by which an edited one is known; HTML, Markdown and PNG ignore that."""
    return content + SEAL % hashlib.sha256(content).hexdigest().encode()


def refuse_edited(path: Path) -> None:
    """Raise PhonetrainError where `path` is not as `sealed` left it."""
    try:
        found = path.read_bytes()
    except OSError:  # there is none, or writing says what is wrong
        return
    size = len(SEAL % (b"0" * 64))
    if sealed(found[:-size]) != found:
        raise PhonetrainError(
            f"{path} was edited since it was written, or is no report of phonetrain; rename or delete it, or give "
            "another place with --out FILE"
        )


def baseline_first(runs: Sequence[Run], baseline: Run | str | os.PathLike[str] | None) -> list[Run]:
    """The runs with the one first that the others are compared with: the oldest where none is said."""
    if baseline is None:
        first = min(runs, key=lambda run: str(next((event["time"] for event in run.events() if "time" in event), "~")))
    else:
        wanted = baseline if isinstance(baseline, Run) else Run.open(baseline)
        found = [run for run in runs if run.path.resolve() == wanted.path.resolve()]
        if not found:
            raise ConfigError(f"baseline: {wanted.path} is none of the runs given; give it among them")
        first = found[0]
    return [first, *(run for run in runs if run is not first)]


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


def several_runs(runs: Sequence[Run], table: Table | None = None) -> str:
    """The page of several runs, the baseline first: the table, their curves over each other, and the life of each."""
    table = table or Table.of(runs)
    curves = as_svg(draw_runs(runs), "Dev loss and accuracy of all runs")
    sections = [
        page.section("Comparison", page.table(HEADER, table.rows, table.best, words=1),
                     *(page.paragraph(line, "soft") for line in table.notes)),
        page.section("What differs", page.table(("setting", *table.names), table.settings, words=1 + len(table.names))),
        page.section("Learning curves", page.wide(curves)),
        page.section("Train them again", *map(page.verbatim, table.commands)),
    ]  # fmt: skip
    for run in runs:
        judged = page.paragraph(verdict(run))
        sections.append(page.section(run.name, judged, page.life(life_of(run))))
    return page.page(f"{len(runs)} runs", ", ".join(run.name for run in runs), sections)


HEADER = ("run", "dev %", "95 %", "seeds +-", "against the first", "95 %", "p", "train %", "dev loss", "parameters",
          "epochs", "frames seen", "time")  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Experiments as rows, the baseline first. best: the row with the highest dev accuracy. settings: those that
    differ, with the value of each row; names: of the rows; commands: that train each run again."""

    rows: list[list[str]]
    best: int | None
    notes: list[str]
    settings: list[tuple[str, ...]]
    names: list[str]
    commands: list[str]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Table:
        """Scores in fp32 on the same utterances where all runs can be compared, else all as training made them."""
        groups = group_runs(runs)
        told: dict[str, Any] | None = None
        notes = ["Frames seen counts every training frame as often as it was used; times are sums over epochs."]
        try:
            print(f"comparing {len(runs)} runs on their dev partition, in fp32", file=sys.stderr)
            told = compare(runs)
        except (PhonetrainError, PhonedataError) as error:
            notes += [f"Accuracies are those of training, each in its own precision: {error}."]
        rows, scores = [], []
        for place, group in enumerate(groups):
            row, score = cls._row(group, place, told)
            rows.append(row)
            scores.append(score)
        if told is not None:
            drawn = f"{told['units']:,} {told['drawn']}"
            notes += [
                f"{told['partition']}: {told['utterances']:,} utterances, {told['frames']:,} frames, fp32. 95 % means "
                f"of {told['draws']:,} draws of {drawn}, and of seeds where there are several; p is two-sided.",
            ]
        if any(len(group) == 1 for group in groups):
            notes += ["Of one seed nobody knows what another would give."]
        tables = [experiment(group[0]) for group in groups]
        keys = dict.fromkeys(key for table in tables for key, _, _ in changes_between(tables[0], table))
        settings = [(key, *(shown(table.get(key)) for table in tables)) for key in keys]
        best = int(np.argmax(scores)) if max(scores) >= 0 else None
        return cls(
            rows, best, notes, settings, [_group_name(group) for group in groups], [commands(run) for run in runs]
        )

    @staticmethod
    def _row(group: Sequence[Run], place: int, told: dict[str, Any] | None) -> tuple[list[str], float]:
        """Cells of HEADER, and the accuracy; means over the group's runs."""
        each = [summary(run) for run in group]

        def mean(name: str) -> float | None:
            values = [numbers[name] for numbers in each if numbers[name] is not None]
            return float(np.mean(values)) if values else None

        if told is None:
            values = [numbers["best_accuracy"] for numbers in each if numbers["best_accuracy"] is not None]
            dev, around, difference, loss = mean("best_accuracy"), "", ["", "", ""], mean("best_loss")
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        else:
            found = told["groups"][place]
            dev, loss, spread = found["accuracy"]["mean"], found["loss"]["mean"], found["accuracy"]["spread"]
            around = f"{percent(found['accuracy']['low'])} to {percent(found['accuracy']['high'])}"
            difference = ["", "", ""]
            if place:
                gained = told["differences"][place - 1]["accuracy"]
                bounds = f"{100 * gained['low']:+.2f} to {100 * gained['high']:+.2f}"
                difference = [f"{100 * gained['difference']:+.2f}", bounds, f"{gained['p']:.3f}"]
        epochs = sorted({numbers["epochs"] for numbers in each})
        row = [
            _group_name(group), percent(dev), around, "" if spread is None else percent(spread), *difference,
            percent(mean("train_accuracy")), number(loss), count(each[0]["parameters"]),
            " to ".join(map(str, dict.fromkeys((epochs[0], epochs[-1])))),
            short(mean("frames") or 0), clock(mean("seconds")),
        ]  # fmt: skip
        return row, -1.0 if dev is None else dev

    def markdown(self) -> str:
        """The table as Markdown, with what differs and the conditions."""
        differs = page.markdown_table(("setting", *self.names), self.settings, words=1 + len(self.names))
        again = "\n\n".join(textwrap.indent(lines, "    ") for lines in self.commands)
        return f"{page.markdown_table(HEADER, self.rows)}\n{differs}\n" + "\n".join(self.notes) + f"\n\n{again}\n"


def _group_name(group: Sequence[Run]) -> str:
    return group[0].name + (f" ({len(group)} seeds)" if len(group) > 1 else "")


def by_hand(run: Run) -> list[str]:
    """What was changed on resume, and at which step: the command gives the last value from the first step on."""
    spans = {span.segment: span for span in run.lineage()}
    return [
        f"{event['key']} was {show(event['old'])} up to step {event['step']:,}, then {show(event['new'])}"
        for event in run.events("config_changed")
        if event.get("by") == "resume" and event.get("segment") in spans and event["step"] > 0
    ]


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
            (
                f"{percent(scores['accuracy'])} %",
                f"frame accuracy on {scores['partition']}, fp32; 95 %: "
                f"{percent(scores['interval']['low'])} to {percent(scores['interval']['high'])}",
            ),
            (f"{percent(scores['error_rate'])} %", "frame error rate"),
            (number(scores["loss"]), "loss, nats a frame"),
            (f"{percent(scores['majority']['share'])} %", f"answering {scores['majority']['phoneme']} everywhere"),
        ]
    elif told["best_accuracy"] is not None:
        where = f"best dev frame accuracy, {told['best_in']}, {told['precision'] or 'precision not recorded'}"
        pairs.append((f"{percent(told['best_accuracy'])} %", where))
    pairs += [
        (count(told["parameters"]), "parameters"),
        (str(told["epochs"]), f"epoch{'s' * (told['epochs'] != 1)}, {short(told['frames'])} frames seen"),
        (clock(told["seconds"]), "training time, without scoring"),
    ]
    if told["frames_per_second"]:
        how = told["precision"] or "precision not recorded"
        pairs.append((f"{short(told['frames_per_second'])}/s", f"frames, median, {how}"))
    return page.numbers(pairs)


def curves(run: Run, scores: Scores) -> list[str]:
    return [
        page.wide(as_svg(draw_run(run), f"Learning curves of {run.name}")),
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
    if len(symbols) > MOST_DRAWN:
        picture = page.paragraph(f"The matrix of {len(symbols)} classes is left out: it could not be read; "
                                 "`phonetrain evaluate --json` has it.", "soft")  # fmt: skip
    else:
        classes = sound_classes(symbols)
        order = sorted(range(len(symbols)), key=lambda place: ORDER.index(classes[place]) if classes else place)
        counts = np.array(scores["confusion"])[np.ix_(order, order)]
        picture = page.wide(as_svg(draw_confusion(counts, [symbols[place] for place in order]), "Confusion matrix"))
        if classes:
            pairs_of = (
                "Phonemes are sorted by class: vowels, approximants, nasals, fricatives, affricates, stops, silence."
            )
            picture += page.paragraph(pairs_of, "soft")
    header = ("most confused", "frames", "of the phoneme", "of all errors")
    return [page.paragraph(conditions, "soft"), picture, page.table(header, pairs)]


def phonemes(run: Run, scores: Scores) -> list[str]:
    if isinstance(scores, str):
        return [page.paragraph(scores)]
    rows = [(row["phoneme"], f"{row['frames']:,}", page.share_bar(row["recall"]), page.share_bar(row["precision"]))
            for row in scores["phonemes"]]  # fmt: skip
    half = -(-len(rows) // 2)
    header = ("phoneme", "frames", "recall", "precision")
    tables = [page.table(header, part) for part in (rows[:half], rows[half:]) if part]
    return [f'<div class="columns">{"".join(tables)}</div>']


def where(run: Run, scores: Scores) -> list[str]:
    """Accuracy by class of sounds, distance to a boundary and speaker; the worst utterances."""
    if isinstance(scores, str):
        return [page.paragraph(scores)]

    def rows(kinds: list[dict[str, Any]], column: str) -> list[tuple[object, ...]]:
        return [(kind[column], f"{kind['frames']:,}", page.share_bar(kind["accuracy"])) for kind in kinds]

    distances = [
        kind | {"frames_away": f"{kind['frames_away']}{' or more' * (kind is scores['by_distance'][-1])}"}
        for kind in scores["by_distance"]
    ]
    tables = [
        page.table(("frames to a boundary", "frames", "right"), rows(distances, "frames_away")),
        page.table(("speaker, hardest first", "frames", "right"), rows(scores["by_speaker"][:20], "speaker")),
        page.table(("worst utterances", "frames", "right"), rows(scores["worst_utterances"], "utterance")),
    ]
    if scores["sounds"] is not None:
        tables.insert(0, page.table(("class of sounds", "frames", "right"), rows(scores["sounds"], "class")))
    return [f'<div class="columns">{"".join(tables)}</div>']


def worst(run: Run, scores: Scores) -> list[str]:
    """The worst utterance: its features, what was true, what was said, and the posteriors."""
    if isinstance(scores, str):
        return [page.paragraph(scores)]
    name = scores["worst_utterances"][0]["utterance"]
    try:
        net = open_trained(run, scores["checkpoint"])
        features, labels, rows = utterance_posteriors(net, scores["partition"], name)
    except (PhonetrainError, PhonedataError) as error:
        return [page.paragraph(f"It could not be drawn: {error}")]
    symbols, shift = net.corpus.phonemes.symbols, net.corpus.frame_shift_ms
    shown_frames = slice(0, int(MOST_SECONDS * 1000 / shift))
    figure = draw_utterance(features[shown_frames], labels[shown_frames], rows[shown_frames], symbols, shift)
    words = (
        f"{name}: {100 * scores['worst_utterances'][0]['accuracy']:.2f} % of {len(labels):,} frames are right"
        + f"; its first {MOST_SECONDS} seconds" * (len(labels) * shift > MOST_SECONDS * 1000)
        + ". What was said wrongly for most of its length is coloured."
    )
    return [page.paragraph(words, "soft"), page.wide(as_svg(figure, f"The worst utterance, {name}"))]


def next_step(run: Run, scores: Scores) -> list[str]:
    judged = verdict(run)
    return [page.paragraph(judged if judged.command is None else f"{judged.sentence[0].upper()}{judged.sentence[1:]}."),
            *([] if judged.command is None else [page.verbatim(f"{judged.command}    # {judged.does}")])]  # fmt: skip


def again(run: Run, scores: Scores) -> list[str]:
    return [page.verbatim(commands(run))]


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
    ("Verdict", next_step),
    ("Learning curves", curves),
    ("What happened", life),
    ("Epochs", epochs),
    ("Confusions", confusions),
    ("Phonemes", phonemes),
    ("Where it is right", where),
    ("The worst utterance", worst),
    ("Train it again", again),
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


def commands(run: Run) -> str:
    """The commands, for a POSIX shell, that train the run again stage by stage: the start, and each change by hand.

    A change made in the middle of an epoch needs a stop at the same step, which no command gives: a comment says so.
    """
    spans = {span.segment for span in run.lineage()}
    by_resume = [event for event in run.events("config_changed") if event.get("by") == "resume"
                 and event.get("segment") in spans and event.get("step", 0) > 0]  # fmt: skip
    if not by_resume:
        return shell_command(run)
    config = RunConfig.from_toml(run.config_path)
    for event in reversed(by_resume):
        with contextlib.suppress(ConfigError):  # a stage's own key, or one that the change brought along
            config = config.replaced({event["key"]: event["old"]})
    name = (run.path.parent / f"{run.name}-again").as_posix()
    words, options = fit_words(run, config=config)
    named = [part for key, value in (options | {"run": name}).items() for part in (f"--{key}", value)]
    lines = [shlex.join(["phonetrain", "fit", *words, *named])]
    ends = {line["step"] for line in run.metrics("epoch")}
    for segment in dict.fromkeys(event["segment"] for event in by_resume):
        events = [event for event in by_resume if event["segment"] == segment]
        step = events[0]["step"]
        changes = [f"{event['key']}={setting_text(event['new'])}" for event in events]
        told = shlex.join(["phonetrain", "resume", name, *changes])
        last = max(line["step"] for line in run.all_metrics() if line.get("segment", 0) < segment)
        if last > step:
            told = shlex.join(["phonetrain", "resume", name, "--from", f"step-{step}", *changes])
        lines.append(told if step in ends else f"{told}    # after a stop at step {step:,} (Ctrl-C)")
    return "\n".join(lines)


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

"""Runs -> one zip to hand in: README, experiment log, architecture, metadata, settings, predictions, curves, reports.

Nothing private goes in: texts pass `cleaned`, and what the zip holds is looked through before it is written.
"""

from __future__ import annotations

import csv
import getpass
import io
import os
import re
import shlex
import socket
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phonedata import PhonedataError
from phonedata.files import named, write_file

from ..checkpoints.series import best_step
from ..config.run_config import RunConfig
from ..display import html as page
from ..display.plots import as_png, draw_run, draw_runs
from ..display.tables import LAYERS, layer_rows, text_table
from ..errors import ConfigError, PhonetrainError, writing
from ..results.predict import predict
from ..results.trained import open_trained, trust_runs
from ..runs.directory import Run, RunName
from ..runs.experiment import NO_NUMBER, changes, shown
from ..runs.explain import explain
from ..runs.next_commands import settings
from ..text import clock, counted, percent, short, to_json
from .one_run import one_run
from .several_runs import several_runs
from .summary import best_evaluation, by_hand, count, summary

LEFT_OUT = "(left out)"
OWN_CODE = (
    "This was trained with phonetrain, a library. Some courses want code of your own: ask before you hand it in, and "
    "say what is yours."
)
# A path from the root, or a drive; not the inside of a word, a tag, an address or a fraction. Its last part stays.
ABSOLUTE = re.compile(
    r"(?<![\w/<:.~+=-])(?:~|[A-Za-z]:)?[/\\](?:[^\s\"'<>|:;,`(){}\[\]/\\]+[/\\])*([^\s\"'<>|:;,`(){}\[\]/\\]+)"
)
DATA_URI = re.compile(r"(data:[\w/+.;=-]+,[A-Za-z0-9+/=]+)")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
COMMON_NAMES = {"root", "user", "home", "colab", "kaggle", "ubuntu", "jupyter", "runner", "admin", "localhost", "model"}


def handin(
    runs: RunName | Sequence[RunName] = None,
    out: str | os.PathLike[str] = "handin.zip",
    corpus: str | os.PathLike[str] | None = None,
    *,
    trust_code: bool = False,
) -> Path:
    """Write the zip and return its path. runs: in the order of the experiment log; None: the newest.

    What is missing of a run is made first: its fp32 score on dev and its predictions of the test partition; what
    cannot be made is said in the README. corpus: the packed corpus, where it has moved. trust_code: as in
    `open_trained`, of all runs.
    Raises RunNotFound, and PhonetrainError where the zip cannot be written.
    """
    opened = Run.open_all(runs)
    if len({run.name for run in opened}) < len(opened):
        raise ConfigError("handin: two of the runs have the same name, which names their folders; rename one of them")
    if trust_code:
        trust_runs(opened)
    told = [Told(run, opened[place - 1] if place else None, corpus) for place, run in enumerate(opened)]
    contents: dict[str, bytes] = {}
    for one in told:
        contents |= {f"{one.run.name}/{name}": content for name, content in one.files().items()}
    contents["experiment_log.md"] = log_text(told).encode()
    contents["experiment_log.csv"] = log_table(told).encode()
    if len(opened) > 1:
        contents["comparison.html"] = several_runs(opened).encode()
        contents["curves.png"] = as_png(draw_runs(opened))
    contents["versions.json"] = to_json({one.run.name: one.versions() for one in told}).encode()
    contents["README.md"] = readme(told, sorted([*contents, "README.md"])).encode()
    packed = zipped({name: private_removed(name, content) for name, content in contents.items()})
    path = Path(out)
    with writing(path, "give another place with --out FILE"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, packed)
    return path


class Told:
    """What the zip tells of one run. before: the run before it in the log."""

    def __init__(self, run: Run, before: Run | None, corpus: str | os.PathLike[str] | None) -> None:
        self.run, self.before, self.corpus = run, before, corpus
        self.config = RunConfig.from_toml(run.config_path)
        self.numbers = summary(run)
        self.scores = best_evaluation(run)
        self.built = run.read_json(run.built_path)
        self.missing: list[str] = []

    def files(self) -> dict[str, bytes]:
        run = self.run
        found = {
            "config.toml": self.config.replaced({"data.corpus": None}).to_toml().encode(),
            "history.txt": "\n".join([*explain(run), *by_hand(run)]).encode() + b"\n",
            "model_arch.txt": self.architecture().encode(),
            "model_metadata.json": to_json(self.metadata()).encode() + b"\n",
            "report.html": one_run(run).encode(),
            "metrics.jsonl": run.metrics_path.read_bytes() if run.metrics_path.is_file() else b"",
        }
        if run.scores():
            found["curves.png"] = as_png(draw_run(run))
        for path in self.predictions():
            found[f"predictions/{path.name}"] = path.read_bytes()
        return found

    def predictions(self) -> list[Path]:
        """CSV files that are not older than the best checkpoint; made where there is none."""
        step = best_step(self.run)
        since = self.run.checkpoint_dir(step).stat().st_mtime if step is not None else 0.0
        made = [path for path in named(self.run.predictions, "*.csv") if path.stat().st_mtime >= since]
        if made:
            return made
        try:
            return [predict(self.run, corpus=self.corpus)]
        except (PhonetrainError, PhonedataError) as error:
            self.missing.append(f"no predictions: {error}")
            return []

    def architecture(self) -> str:
        """The layers as they were built, as a table; of a model of one's own what torch prints."""
        model = self.built.get("model") or {}
        lines = [f"{model.get('class')}, {count(model.get('parameters'))} parameters"]
        if model.get("layers"):
            return "\n".join([*lines, "", *text_table(LAYERS, layer_rows(model["layers"]), left=2)]) + "\n"
        try:
            lines += ["", str(open_trained(self.run, corpus=self.corpus, device="cpu").model)]
        except (PhonetrainError, PhonedataError) as error:
            self.missing.append(f"no layers in model_arch.txt: {error}")
        return "\n".join(lines) + "\n"

    def metadata(self) -> dict[str, Any]:
        numbers, loader = self.numbers, self.built.get("loader") or {}
        scores = self.scores if isinstance(self.scores, dict) else {}
        return {
            "run": self.run.name, "recipe": numbers["recipe"], "status": numbers["status"],
            "parameters": numbers["parameters"], "class": (self.built.get("model") or {}).get("class"),
            "window": [self.config.window.left, self.config.window.right],
            "epochs": numbers["epochs"], "frames_seen": numbers["frames"], "seconds": numbers["seconds"],
            "precision": numbers["precision"], "trained_on": loader.get("partitions"),
            "training_frames": loader.get("frames"), "scored_on": numbers["partition"],
            "accuracy": scores.get("accuracy", numbers["best_accuracy"]), "accuracy_interval": scores.get("interval"),
            "accuracy_in": "fp32" if scores else numbers["precision"],
            "checkpoint": scores.get("checkpoint"), "weights_digest": scores.get("weights_digest"),
            "corpus_digest": (self.run.read_json(self.run.environment_path).get("corpus") or {}).get("digest"),
        }  # fmt: skip

    def versions(self) -> dict[str, Any]:
        environment = self.run.read_json(self.run.environment_path)
        return {name: environment.get(name) for name in ("python", "packages", "machine", "commit")}

    def changed(self) -> list[str]:
        """What differs from the run before, as `key old → new`."""
        if self.before is None:
            return []
        return [
            f"{key} {shown(old)} → {shown(new)}"
            for key, old, new in changes(settings(self.before), settings(self.run))
            if not key.startswith(NO_NUMBER)
        ]

    def accuracy(self) -> str:
        """`86.12 % (85.90 to 86.30)`, in fp32; what training scored where that is all there is."""
        if isinstance(self.scores, dict):
            bounds = self.scores.get("interval")
            around = f" ({percent(bounds['low'])} to {percent(bounds['high'])})" if bounds else ""
            return f"{percent(self.scores['accuracy'])} %{around}"
        return f"{percent(self.numbers['best_accuracy'])} %"

    def prose(self) -> str:
        numbers = self.numbers
        if self.before is None:
            change = f"It trained the recipe {numbers['recipe']}."
        else:
            differs = "; ".join(self.changed()) or "nothing but what the history tells"
            change = f"Changed against {self.before.name}: {differs}."
        hand = by_hand(self.run)
        later = f" By hand during the run: {'; '.join(hand)}." if hand else ""
        scored = (
            f"Its best epoch has a frame accuracy of {self.accuracy()} on {numbers['partition']}"
            if numbers["best_accuracy"] is not None
            else "It was never scored"
        )
        return (
            f"{change}{later} {count(numbers['parameters'])} parameters, "
            f"{counted(numbers['epochs'], 'epoch')}, {short(numbers['frames'])} frames seen in "
            f"{clock(numbers['seconds'])} ({numbers['status']}). {scored}."
        )

    def tracked_at(self) -> str | None:
        """The run's page in wandb, where it was uploaded; else its id and project."""
        tracker = self.run.read_json(self.run.tracker_path)
        if tracker.get("url"):
            return str(tracker["url"])
        if tracker.get("wandb_id"):
            return f"wandb project {self.config.tracking.project}, run id {tracker['wandb_id']} (not uploaded yet)"
        return None


HEADER = ("run", "changed against the run before", "parameters", "epochs", "frames seen", "dev accuracy", "time")


def log_rows(told: Sequence[Told]) -> list[tuple[str, ...]]:
    return [
        (one.run.name, "; ".join(one.changed()) or "-", count(one.numbers["parameters"]),
         str(one.numbers["epochs"]), short(one.numbers["frames"]), one.accuracy(), clock(one.numbers["seconds"]))
        for one in told
    ]  # fmt: skip


def log_text(told: Sequence[Told]) -> str:
    """The experiment log: prose, then the same as a table."""
    parts = [f"## {place}. {one.run.name}\n\n{one.prose()}\n" for place, one in enumerate(told, 1)]
    table = page.markdown_table(HEADER, [list(row) for row in log_rows(told)], words=2)
    note = (
        "Accuracies are shares of frames of the best checkpoint, in fp32, with a 95 % interval from resampled "
        "utterances or speakers; time is training without scoring."
    )
    return "\n".join(["# Experiment log", "", *parts, "## All runs", "", table, "", note, ""])


def log_table(told: Sequence[Told]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([HEADER, *log_rows(told)])
    return text.getvalue()


def readme(told: Sequence[Told], names: Sequence[str]) -> str:
    """How to run it again, what lies where, what is missing."""
    tried = [f"    phonetrain fit {one.run.name}/config.toml --corpus packed" for one in told]
    links = [f"- {one.run.name}: {at}" for one in told if (at := one.tracked_at())]
    missing = [f"- {one.run.name}: {sentence}" for one in told for sentence in one.missing]
    missing += [f"- {one.run.name}: {one.scores}" for one in told if isinstance(one.scores, str)]
    factories = [f"- {one.run.name} has a model of its own, {Path(one.config.model.factory).name}: add that file"
                 for one in told if one.config.model.factory]  # fmt: skip
    return "\n".join([
        "# Frame-level phoneme recognition", "", OWN_CODE, "",
        "## How to run", "",
        "    pip install .                      # in a clone of phonedata + phonetrain",
        "    phonedata pack raw/ packed/        # the course's data folder",
        *tried,
        "    phonetrain evaluate && phonetrain predict", "",
        "Settings that were changed during a run, and at which step, stand in its history.txt.", "",
        "## Results", "", "`experiment_log.md` tells what was tried and why each number moved.", "",
        *[f"- {one.run.name}: {one.accuracy()} of the frames of {one.numbers['partition']}" for one in told], "",
        *(["## wandb", "", *links, ""] if links else []),
        *(["## To be added", "", *missing, *factories, ""] if missing or factories else []),
        "## Files", "", *[f"- `{name}`" for name in names], "",
    ])  # fmt: skip


# What is private


def private_removed(name: str, content: bytes) -> bytes:
    """A file of the zip without anything private. Pictures and predictions (an id and a label a line) have none."""
    if name.endswith(".png") or "/predictions/" in name:
        return content
    return cleaned(content.decode("utf-8", "replace")).encode()


def cleaned(text: str) -> str:
    """`text` without host, user, keys of the environment and absolute paths, of which the last part stays."""
    parts = DATA_URI.split(text)  # inside of a picture every second letter may be a slash
    for place in range(0, len(parts), 2):
        part = ABSOLUTE.sub(r"\1", parts[place])
        for private in private_words():
            part = re.sub(rf"(?<!\w){re.escape(private)}(?!\w)", LEFT_OUT, part)
        parts[place] = part
    return "".join(parts)


def private_words() -> list[str]:
    """This machine's and this user's names, and values of variables that are named like secrets; longest first."""
    names = {socket.gethostname(), socket.getfqdn()}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError, ImportError):
        pass  # a user id without a name
    names = {name for name in names if len(name) >= 4 and name.lower() not in COMMON_NAMES}
    secrets = {value for key, value in os.environ.items() if SECRET.search(key) and len(value) >= 8}
    return sorted(names | secrets, key=len, reverse=True)


def zipped(contents: dict[str, bytes]) -> bytes:
    """A zip of these files in a folder `handin`, the same bytes for the same files."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            about = zipfile.ZipInfo(f"handin/{name}")
            about.compress_type, about.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(about, contents[name])
    return memory.getvalue()


def submit_commands(run: RunName = None, competition: str = "COMPETITION") -> str:
    """The commands that submit a run's predictions to Kaggle, one a line. competition: the last part of its address.

    Raises PhonetrainError where the run has no predictions yet.
    """
    opened = Run.open(run)
    found = sorted(named(opened.predictions, "*.csv"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise PhonetrainError(f"{opened.path}: no predictions yet; `phonetrain predict {opened.path}` makes them")
    best = opened.best()
    accuracy = f", dev {percent(best['dev_accuracy'])} %" if best and best.get("dev_accuracy") is not None else ""
    send = shlex.join(
        ["kaggle", "competitions", "submit", "-c", competition, "-f", str(found[-1]), "-m", f"{opened.name}{accuracy}"]
    )
    look = shlex.join(["kaggle", "competitions", "submissions", "-c", competition])
    where = "COMPETITION is the last part of its address" if competition == "COMPETITION" else ""
    lines = [
        "pip install kaggle    # once; then put the token from kaggle.com/settings into ~/.kaggle/kaggle.json",
        f"{send}{f'    # {where}' if where else ''}",
        f"{look}    # the score",
    ]
    return "\n".join(lines)

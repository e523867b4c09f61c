"""All `phonetrain` commands. Each parses, calls the function of its name and prints the result to stdout."""

from __future__ import annotations

from cyclopts import App

from . import reports, results, training
from .recipes import recipes
from .runs import runs

app = App(
    name="phonetrain",
    help="Turns context windows into phonemes: train, resume, evaluate, predict, report. "
    "With nothing given, `fit` finds packed/ and trains the default recipe; "
    "the others take the run under runs/ that was trained last.",
    help_format="markdown",
    version=lambda: _version(),
)
for command in (
    training.fit, training.sweep, training.resume, training.audit, training.doctor, training.settings,
    results.evaluate, results.compare, results.predict, results.transcribe, results.suspects, results.export,
    reports.report, reports.explain, reports.handin, reports.submit, reports.upload,
    recipes, runs,
):  # fmt: skip
    app.command(command)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("phonedata")
    except PackageNotFoundError:
        from phonedata import __version__

        return __version__

"""Run directories -> one self-contained HTML page that could be handed in; of several runs, a table that compares them.

Every number in it is read from the run's own files (metrics, events, built, environment, kept evaluations); only where
the best checkpoint was never scored on dev in fp32 it is scored now. A file that somebody edited is never replaced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from phonedata.files import is_folder, read_file, write_files

from ..console.open import show_picture
from ..display.plots import as_png, draw_run, draw_runs
from ..errors import ConfigError, PhonetrainError, RunNotFound, writing
from ..results.trained import trust_runs
from ..runs.directory import Run, RunName
from .one_run import one_run
from .several_runs import Table, several_runs


def report(
    runs: RunName | Sequence[RunName] = None,
    out: str | os.PathLike[str] | None = None,
    baseline: RunName = None,
    *,
    trust_code: bool = False,
) -> Path:
    """Write the page and return its path.

    runs: one run or several (objects, directories or names); None or nothing takes the newest. out: the HTML file;
    default report.html in the run directory, beside its curves.png, for several runs report-NAME-NAME.html here, with a
    Markdown table beside it (`.md`). baseline: of several, the run that the others are compared with; default the
    oldest. trust_code: as in `open_trained`, of all runs.
    Raises RunNotFound, ConfigError, and PhonetrainError where a file there was edited since it was written.
    """
    opened = Run.open_all(runs)
    if trust_code:
        trust_runs(opened)
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
        found = None if is_folder(path) else read_file(path)
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None:  # writing says what is wrong; to read a folder, Windows says, is not allowed
        return
    size = len(SEAL % (b"0" * 64))
    if sealed(found[:-size]) != found:
        raise PhonetrainError(
            f"{path} was edited since it was written, or is no report of phonetrain; rename or delete it, or give "
            "another place with --out FILE"
        )


def baseline_first(runs: Sequence[Run], baseline: RunName) -> list[Run]:
    """The runs with the one first that the others are compared with: the oldest where none is said."""
    if baseline is None:
        first = min(runs, key=lambda run: str(next((event["time"] for event in run.events() if "time" in event), "~")))
    else:
        wanted = Run.open(baseline)
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

"""`phonetrain report`, `explain`, `handin`, `submit` and `upload`: runs for people to read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from ..display.tables import print_result
from .options import Flag, Json, MovedCorpus, OneRun, TrustCode


def report(
    *runs: Path,
    out: Path | None = None,
    baseline: Path | None = None,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run, or about several with an ablation table beside it; prints paths.

    Parameters
    ----------
    runs
        Run directories or names; default: the one under runs/ trained last.
    out
        The HTML file; default RUN/report.html, for several runs report-NAME-NAME.html. An edited one is never replaced.
    baseline
        Of several runs the one that the others are compared with; default: the oldest.
    """
    from ..reports.report import report, table_beside

    path = report(runs, out, baseline, trust_code=trust_code)
    result = {"report": str(path)} | ({"table": str(table_beside(path))} if len(runs) > 1 else {})
    print_result(result, "\n".join(result.values()), json)


def explain(run: OneRun = None, *, json: Flag = False) -> None:
    """Tell a run's life in plain sentences: segments, what changed, why it stopped, what to do next.

    Parameters
    ----------
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


def handin(
    *runs: Path,
    out: Path = Path("handin.zip"),
    corpus: MovedCorpus = None,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Write one zip to hand in: README, experiment log, architecture, settings, predictions, curves, reports.

    Nothing private goes in: no host, user, key or absolute path.

    Parameters
    ----------
    runs
        Run directories or names, in the order of the log; default: the one under runs/ trained last.
    out
        The zip.
    """
    from ..reports.handin import handin

    path = handin(runs, out, corpus, trust_code=trust_code)
    print_result({"handin": str(path)}, str(path), json)


def submit(run: OneRun = None, *, competition: str = "COMPETITION", json: Json = False) -> None:
    """Print the `kaggle` commands that submit a run's predictions.

    Parameters
    ----------
    competition
        The last part of the competition's address.
    """
    from ..reports.handin import submit_commands

    commands = submit_commands(run, competition)
    print_result({"commands": commands.splitlines()}, commands, json)


def upload(run: OneRun = None, *, to: Literal["wandb", "tensorboard", "trackio"] = "wandb", json: Json = False) -> None:
    """Replay a run's numbers into wandb, TensorBoard or trackio as one curve; a second call adds only what is new.

    Parameters
    ----------
    to
        wandb (needs `wandb login`), tensorboard (event files in RUN/tensorboard) or trackio (on this machine).
    """
    from ..runs.upload import upload

    sent = upload(run, to)
    text = f"{sent['where']}: {sent['added']:,} of {sent['lines']:,} lines added"
    if sent["offline"]:
        text += f"\nnext: wandb sync {shlex.quote(sent['where'])}    # or upload again without WANDB_MODE"
    print_result(sent, text, json)

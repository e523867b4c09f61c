"""wandb as a mirror of metrics.jsonl, which is the truth: offline unless asked, one id for a run's whole life, never
a prompt, and whatever fails in it costs one warning line and no training."""

from __future__ import annotations

import contextlib
import importlib
import netrc
import os
import secrets
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from ..config.sections import TrackingConfig
from ..text import command, opening_line
from .directory import Run

Mode = Literal["online", "offline"]
INIT_SECONDS = 30
FINISH_SECONDS = 60


class Tracker:
    """The interface of trackers; this one does nothing."""

    def log(self, line: dict[str, Any], step: int) -> None:
        """Mirror one line of metrics.jsonl; `step` is the trainer's own and becomes the x-axis."""

    def config(self, settings: dict[str, Any]) -> None:
        """What is shown as the run's config from now on, in place of what was under the same names."""

    def summary(self, numbers: dict[str, Any]) -> None:
        """Numbers that stand for the whole run (best dev accuracy, ...)."""

    def finish(self, exit_code: int = 0) -> None:
        """Close; says how to upload what was recorded offline. Harmless when repeated."""


def open_tracker(
    config: TrackingConfig,
    run: Run,
    settings: dict[str, Any],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> Tracker:
    """The tracker that `config.wandb` asks for; WANDB_MODE, where it is set, wins.

    settings: what wandb shows as the run's config (the resolved config and what was really built). say, warn: where
    lines for people go (a console's methods).
    """
    mode = _mode(config.wandb)
    if mode == "online" and not logged_in():
        warn("wandb: online was asked for, but nobody is logged in (`wandb login`); recording offline")
        mode = "offline"
    if mode == "off":
        return Tracker()
    tracker = None
    attempts: tuple[Mode, ...] = ("online", "offline") if mode == "online" else ("offline",)
    for attempt in attempts:
        try:
            tracker = WandbTracker(attempt, config, run, settings, say, warn)
            break
        except ImportError as error:
            warn(f"wandb: cannot be imported ({opening_line(error)}); the run is recorded in {run.metrics_path} only")
            break
        except Exception as error:
            then = "recording offline" if attempt == "online" else f"the run is recorded in {run.metrics_path} only"
            warn(f"wandb: did not start ({opening_line(error)}); {then}")
            _tear_down()
    return tracker or Tracker()


class WandbTracker(Tracker):
    """One wandb run under the id kept in tracker.json, its files in the run directory."""

    def __init__(
        self,
        mode: Mode,
        tracking: TrackingConfig,
        run: Run,
        settings: dict[str, Any],
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ):
        self.run, self.mode, self.say, self.warn = run, mode, say, warn
        self.id = wandb_id(run)
        self.wandb_run: Any = None
        self.wandb_run = begin(run, tracking, mode, self.id)
        self.config(settings)

    def log(self, line: dict[str, Any], step: int) -> None:
        self._try(lambda wandb_run: wandb_run.log(named(line) | {"step": step}))

    def config(self, settings: dict[str, Any]) -> None:
        self._try(lambda wandb_run: wandb_run.config.update(without_places(settings), allow_val_change=True))

    def summary(self, numbers: dict[str, Any]) -> None:
        self._try(lambda wandb_run: wandb_run.summary.update(numbers))

    def finish(self, exit_code: int = 0) -> None:
        if self.wandb_run is None:
            return
        self._try(lambda wandb_run: wandb_run.finish(exit_code=exit_code))
        if self.wandb_run is not None and self.mode == "offline":
            self.say(f"wandb: to upload, {command('upload', self.run.path)}")
        self.wandb_run = None

    def _try(self, act: Callable[[Any], object]) -> None:
        if self.wandb_run is None:
            return
        try:
            act(self.wandb_run)
        except Exception as error:
            self.wandb_run = None
            self.warn(
                f"wandb: died ({opening_line(error)}); training goes on, {self.run.metrics_path} has every number"
            )
            _tear_down()


def begin(run: Run, tracking: TrackingConfig, mode: Mode, wandb_id: str) -> Any:
    """A wandb run under that id, its files in the run's directory, its x-axis our step. Raises what wandb raises."""
    wandb = quietly_imported("wandb")
    begun = wandb.init(
        mode=mode,
        project=tracking.project,
        entity=tracking.entity,
        name=tracking.name or run.name,
        notes=tracking.notes,
        tags=list(tracking.tags),
        id=wandb_id,
        # A notebook may have a run of its own open: without this, ours would be that one, and end it.
        reinit="create_new",
        dir=str(run.path),
        # Offline, wandb knows no resuming: each segment is a directory; `phonetrain upload` sends one curve.
        resume="allow" if mode == "online" else None,
        settings=private_settings(wandb),
    )
    # wandb's own step restarts with each process, and would refuse a segment that went back.
    begun.define_metric("step")
    begun.define_metric("*", step_metric="step")
    return begun


def quietly_imported(name: str) -> Any:
    """A library, without the warnings that it gives of its own dependencies. Raises ImportError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def named(line: dict[str, Any]) -> dict[str, Any]:
    """A line as a tracker shows it: `train/loss`, `epoch/dev_accuracy`; without the step, which is the axis."""
    return {f"{line['kind']}/{key}": value for key, value in line.items() if key not in ("kind", "step")}


def wandb_id(run: Run) -> str:
    """The run's wandb id: made once, kept in tracker.json, the same for every segment and after a copy."""
    kept = run.read_json(run.tracker_path).get("wandb_id")
    if isinstance(kept, str) and kept:
        return kept
    made = secrets.token_hex(4)
    run.write_json(run.tracker_path, run.read_json(run.tracker_path) | {"wandb_id": made})
    return made


def private_settings(wandb: Any) -> Any:
    """wandb.Settings of a run that asks nothing, prints nothing, and records no host, user, program or code."""
    wanted: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "disable_git": True,
        "disable_code": True,
        "save_code": False,
        "x_disable_meta": True,  # host, user, program and arguments
        "init_timeout": INIT_SECONDS,
        "login_timeout": 1,
        "finish_timeout": FINISH_SECONDS,
    }
    known = getattr(wandb.Settings, "model_fields", {})
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def without_places(value: Any) -> Any:
    """Settings for others to see: of an absolute path only the last part."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def _mode(asked: str) -> str:
    mode = os.environ.get("WANDB_MODE", "").strip().lower() or asked
    names = {"disabled": "off", "off": "off", "online": "online", "run": "online", "shared": "online"}
    return names.get(mode, "offline")


def logged_in() -> bool:
    """Whether wandb will find credentials without asking: its environment variables, ~/.netrc, or this session."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    with contextlib.suppress(Exception):
        wandb = quietly_imported("wandb")
        host = urlsplit(wandb.Settings().base_url).hostname or ""
        for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
            with contextlib.suppress(OSError, netrc.NetrcParseError):
                if name and netrc.netrc(Path(name).expanduser()).authenticators(host):
                    return True
        # Of this session: a notebook that called wandb.login() before. Older versions, which can only ask, raise here.
        return bool(wandb.login(prompt=False, verify=False))
    return False


def _tear_down() -> None:
    """Take down what is left of wandb, so that its atexit hook does not end the process with a traceback.

    Not under a run that somebody else has open: it would end with ours.
    """
    with contextlib.suppress(Exception):
        if sys.modules["wandb"].run is None:
            sys.modules["wandb"].teardown(exit_code=1)

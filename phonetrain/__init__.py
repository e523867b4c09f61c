"""Turns context windows into phonemes: trains, resumes, evaluates and explains frame classifiers.

In a notebook:

    import phonetrain
    run = phonetrain.fit("default", "epochs=5", corpus="packed")    # settings as texts, "optimizer.lr=5e-4" too
    phonetrain.evaluate(run)["accuracy"]
    phonetrain.predict(run)
    phonetrain.resume(run, "epochs=10", "schedule.on_extend=stretch")
    phonetrain.report(run)
"""

import importlib
import os
from typing import TYPE_CHECKING

import phonedata as _phonedata  # noqa: F401  (first: it finds numba a place for compiled kernels)

# The threads of a step meet several times a layer. GNU OpenMP, which reads this when torch is imported, lets those that
# wait spin for milliseconds: beside any other program on the same cores, a thread that was put aside keeps the others
# spinning. After this many turns, some tenths of a millisecond, they sleep (docs/PERFORMANCE.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Public name -> the module that defines it. Modules are imported when a name is first used: `import phonetrain` costs
# nothing.
_MODULES = {
    "PhonetrainError": "errors",
    "ConfigError": "errors",
    "RunExists": "errors",
    "RunNotFound": "errors",
    "CheckpointError": "errors",
    "TrainingStopped": "errors",
    "RunConfig": "config.run_config",
    "load_recipe": "config.run_config",
    "recipe_names": "config.toml",
    "Run": "runs.directory",
    "fit": "training.fit",
    "resume": "training.resume",
    "audit": "training.audit",
    "find_lr": "planning.find_lr",
    "evaluate": "results.evaluate",
    "compare": "results.compare",
    "predict": "results.predict",
    "open_trained": "results.trained",
    "report": "reports.report",
    "handin": "reports.handin",
    "list_runs": "reports.run_list",
    "prune_runs": "reports.run_list",
    "explain": "runs.explain",
    "upload": "runs.upload",
    "doctor": "planning.doctor",
    "sweep": "planning.sweep",
    "export": "results.export",
    "transcribe": "results.transcribe",
    "suspects": "results.suspects",
}

__all__ = sorted(_MODULES)

if TYPE_CHECKING:
    # The same names for type checkers and editors, which do not run `__getattr__`; tests/test_face.py compares them.
    from .config.run_config import RunConfig as RunConfig
    from .config.run_config import load_recipe as load_recipe
    from .config.toml import recipe_names as recipe_names
    from .errors import CheckpointError as CheckpointError
    from .errors import ConfigError as ConfigError
    from .errors import PhonetrainError as PhonetrainError
    from .errors import RunExists as RunExists
    from .errors import RunNotFound as RunNotFound
    from .errors import TrainingStopped as TrainingStopped
    from .planning.doctor import doctor as doctor
    from .planning.find_lr import find_lr as find_lr
    from .planning.sweep import sweep as sweep
    from .reports.handin import handin as handin
    from .reports.report import report as report
    from .reports.run_list import list_runs as list_runs
    from .reports.run_list import prune_runs as prune_runs
    from .results.compare import compare as compare
    from .results.evaluate import evaluate as evaluate
    from .results.export import export as export
    from .results.predict import predict as predict
    from .results.suspects import suspects as suspects
    from .results.trained import open_trained as open_trained
    from .results.transcribe import transcribe as transcribe
    from .runs.directory import Run as Run
    from .runs.explain import explain as explain
    from .runs.upload import upload as upload
    from .training.audit import audit as audit
    from .training.fit import fit as fit
    from .training.resume import resume as resume
else:

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module 'phonetrain' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"phonetrain.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})

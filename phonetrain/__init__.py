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
import sys
import types

# The threads of a step meet several times a layer. GNU OpenMP, which reads this when torch is imported, lets those that
# wait spin for milliseconds: beside any other program on the same cores, a thread that was put aside keeps the others
# spinning. After this many turns, some tenths of a millisecond, they sleep (docs/PERFORMANCE.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Public name -> the room it lives in. Rooms are imported when first asked for, so that `import phonetrain` is free.
_ROOMS = {
    "PhonetrainError": "errors",
    "ConfigError": "errors",
    "RunExists": "errors",
    "RunNotFound": "errors",
    "CheckpointError": "errors",
    "TrainingStopped": "errors",
    "RunConfig": "config",
    "load_recipe": "config",
    "recipe_names": "config",
    "Run": "run",
    "fit": "fit",
    "resume": "fit",
    "find_lr": "find_lr",
    "evaluate": "predict",
    "predict": "predict",
    "open_trained": "trained",
    "report": "report",
    "explain": "explain",
    "doctor": "doctor",
    "export": "export",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str):
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module 'phonetrain' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"phonetrain.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})


class _Face(types.ModuleType):
    """Keeps `phonetrain.fit` the function: importing a room of the same name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, types.ModuleType) and _ROOMS.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face

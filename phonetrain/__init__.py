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
    "RunConfig": "config.run_config",
    "load_recipe": "config.run_config",
    "recipe_names": "config.run_config",
    "Run": "runs.directory",
    "fit": "training.fit",
    "resume": "training.resume",
    "find_lr": "planning.find_lr",
    "evaluate": "results.predict",
    "predict": "results.predict",
    "open_trained": "results.trained",
    "report": "results.report",
    "explain": "runs.explain",
    "doctor": "planning.doctor",
    "export": "results.export",
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

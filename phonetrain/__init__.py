"""Turns context windows into phonemes: trains, resumes, evaluates and explains frame classifiers.

In a notebook:

    import phonetrain
    run = phonetrain.fit("default", "epochs=5", corpus="packed")    # settings as texts, "optimizer.lr=5e-4" too
    phonetrain.evaluate(run)["accuracy"]
    phonetrain.predict(run)
    phonetrain.resume(run, "epochs=10", "schedule.on_extend=stretch")
    phonetrain.report(run)
"""

import os

# Importing phonedata comes first of all: it finds numba a place for compiled kernels.
from phonedata.face import attach_stub

# The threads of a step meet several times a layer. GNU OpenMP, which reads this when torch is imported, lets those that
# wait spin for milliseconds: beside any other program on the same cores, a thread that was put aside keeps the others
# spinning. After this many turns, some tenths of a millisecond, they sleep (docs/PERFORMANCE.md).
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

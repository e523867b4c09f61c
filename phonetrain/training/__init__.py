"""A run from start to end.

Read fit.py first, then session.py (one process of it), trainer.py (the loop), build.py and data.py (what is built from
a config), memory.py (what that needs), starting_weights.py (of another run), resume.py, stopping.py, nonfinite.py and
recovery.py (NaNs), audit.py (trains a part again), launch.py and worker.py (several processes). What changes meanwhile,
and how it is kept, is in phonetrain/checkpoints.
"""

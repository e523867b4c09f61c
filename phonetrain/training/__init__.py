"""A run from start to end.

Read fit.py first, then session.py (one process of it), trainer.py (the loop), build.py and data.py (what is built from
a config), state.py and checkpoint.py (what moves, and how it is kept), resume.py, stopping.py, nonfinite.py and
recovery.py (numbers that went bad).
"""

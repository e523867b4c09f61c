"""Before a run is trained: dry_run.py (what a recipe would build), find_lr.py (learning-rate range test), doctor.py
(what this machine offers). All are functions for notebooks too."""

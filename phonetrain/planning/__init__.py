"""Before a run is trained: dry_run.py (what a recipe would build), find_lr.py (learning-rate range test), doctor.py
(what this machine offers), sweep.py and search_space.py (many settings). All are functions for notebooks too."""

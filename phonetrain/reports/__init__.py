"""Runs for people to read: report.py (an HTML page) with one_run.py and several_runs.py, handin.py (a zip to hand in),
run_list.py (all runs of a folder); summary.py has the numbers that stand for a run."""

"""A run's directory: directory.py (its files), history.py (its life, line by line), recorded.py (the types in its JSON
files), experiment.py (which runs differ only in the seed), tracker.py (wandb), upload.py (its curve for trackers),
next_commands.py, verdict.py and explain.py (what happened and what to type next)."""

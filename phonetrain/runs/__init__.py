"""A run's directory: directory.py (its files), history.py (its life, line by line), recorded.py (the types in its JSON
files), experiment.py (what it is one of), tracker.py (wandb), next_commands.py, verdict.py and explain.py (what
happened and what to type next)."""

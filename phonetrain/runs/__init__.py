"""A run's directory: directory.py (its files), history.py (its life, line by line), tracker.py (wandb),
next_commands.py and explain.py (what happened and what to type next)."""

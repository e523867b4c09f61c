"""The `phonetrain` command line, and only what a terminal needs: main.py (settings, errors, exit codes), commands.py
(what each command does), recipes.py (`recipes list`, `show`, `copy`), settings.py (`settings`)."""

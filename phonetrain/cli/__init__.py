"""The `phonetrain` command line, and only what a terminal needs: main.py (settings, errors, exit codes), commands.py
(all commands), options.py (what several of them take), training.py, results.py, reports.py, recipes.py and runs.py
(what each does), settings.py (the table of `settings`)."""

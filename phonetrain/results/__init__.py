"""After training: trained.py (a model, opened), posteriors.py (its answer for each frame), smoothing.py (best path),
evaluate.py (counts against labels, with phones.py, sounds.py and bootstrap.py), compare.py (runs against each other),
predict.py and output.py (files), export.py (a model for torch alone), report.py, html.py, plots.py and tables.py (for
people)."""

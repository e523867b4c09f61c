"""After a run was trained: trained.py (open a trained model), predict.py (scores and the predictions CSV), export.py,
report.py over html.py, plots.py and tables.py."""

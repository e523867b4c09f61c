"""After training: trained.py (a model, opened), onnx_model.py (an exported one), posteriors.py (its answers by frame),
smoothing.py (best path), folding.py (fewer classes), evaluate.py (counts against labels, with phones.py, sounds.py and
bootstrap.py), compare.py (runs against each other), suspects.py (wrong labels), predict.py, transcribe.py and
prediction_files.py (files), export.py (programs for use elsewhere)."""

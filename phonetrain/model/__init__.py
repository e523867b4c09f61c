"""The network: classifier.py (the MLP), widths.py (layer widths under a parameter cap), custom.py (a model of the
user's own), trust.py (whose code may run), ema.py (averaged weights).

Axes: B batch, W frames of a window, D coefficients, H hidden, C classes."""

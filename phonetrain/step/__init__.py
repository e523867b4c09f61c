"""One training step and one epoch of them.

Read train_step.py first (forward, backward, update), then loss.py, augment.py with warp.py, metrics.py (sums),
status.py (NaN flag and sums, on the device), epoch.py and cuda_graph.py (steps of an epoch, eager or captured),
neighbours.py (nets that predict several frames), scoring.py (a pass without learning).

Axes: B batch, W frames of a window, D coefficients, C classes.
"""

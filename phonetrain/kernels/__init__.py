"""Hidden layers and losses by kernels of our own, equal to torch's modules within rounding.

Read layer.py first, which decides what computes a layer, then known.py, then cpu_layer.py over cpu_kernels.py and
cpu_math.py (numba), or cuda_layer.py over triton_layer.py, triton_math.py and triton_step.py (Triton).

Axes: B batch, H hidden, C classes.
"""

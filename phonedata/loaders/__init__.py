"""Packed -> batches of context windows: which frames (order), where they lie (rows), and the copy (window_kernel).

Read open.py first, then windows.py (what a window and a batch are), order.py and permutation.py (which frame comes
when), rows.py (where a frame lies), window_kernel.py, then a loader over base.py: host.py, resident.py or slab.py.
prefetch.py has their threads, mapped_files.py reads ahead.

Axes: N frames, R rows, D coefficients, W frames of a window, B batch.
"""

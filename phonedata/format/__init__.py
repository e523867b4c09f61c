"""The packed corpus on disk, byte by byte in docs/FORMAT.md: opened, selected from, verified, described.

Read corpus.py first; attributes.py reads and checks the metadata; selection.py takes a part of a corpus; zarr_files.py
knows where the bytes of an array lie; verify.py reads every byte; describe.py says what is in it.

Axes: U utterances, N frames, R rows (frames and the padding between utterances), D coefficients, C classes.
"""

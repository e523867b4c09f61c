"""Raw -> packed: what `phonedata pack`, `extract` and `merge` do.

Read pack.py first (the whole way), then plan.py (which row every utterance gets), packer.py (read, normalise, write),
checks.py (what is refused), chunk_writer.py and metadata.py (the files written), journal.py (how an interrupted pack
goes on), report.py (what a person is told). ordered_pool.py runs work on threads and keeps its order.

Axes: U utterances, N frames, R rows, D coefficients.
"""

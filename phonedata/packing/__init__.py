"""Raw -> packed: what `phonedata pack` and `extract` do.

Read pack.py first (the whole way), then plan.py (which row every utterance gets), packer.py (read, normalise, write),
checks.py (what is refused), chunk_writer.py and metadata.py (the files written), journal.py (how an interrupted pack
goes on), report.py (what a person is told). executor.py runs tasks on threads, processes or other machines. extract.py
makes a raw folder from audio, audio_features.py the features of one file; utterances.py packs what a program yields.

Axes: U utterances, N frames, R rows, D coefficients.
"""

"""Foreign data: a folder in a layout that somebody else made -> utterances with features and labels.

Read base.py first (what a layout offers), then open.py (which layout a folder holds), then one layout: hw1p2.py,
libriphone.py, kaldi.py or audio.py over audio_files.py. The other files are shared by layouts: npy.py and alignments.py
read one file, label_table.py, label_lines.py and frame_labels.py turn labels into class numbers, frontend.py makes
features from audio, views.py folds symbols, splits a corpus and leaves utterances out.

Axes: U utterances, T frames of one utterance, D coefficients, C classes.
"""

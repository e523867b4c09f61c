"""Packed corpora to measure on: random features in LibriSpeech's proportions, of any size."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from phonedata import PackedCorpus, pack, pack_utterances

PARTITION = "train-clean-100"


def make_corpora(folder: Path, utterances: int) -> dict[str, PackedCorpus]:
    """One fake raw corpus of about 1,270 frames an utterance, packed as float16 and as float32."""
    from tools.fake_corpus import make_fake_corpus

    make_fake_corpus(folder / "raw", utterances)
    for dtype in ("float16", "float32"):
        pack(folder / "raw", folder / dtype, dtype=dtype)
    shutil.rmtree(folder / "raw")
    return {dtype: PackedCorpus(folder / dtype) for dtype in ("float16", "float32")}


def repeat_corpus(corpus: PackedCorpus, folder: Path, times: int) -> PackedCorpus:
    """`times` copies of the training partition as one longer partition of the same values."""
    source = corpus[PARTITION]

    def copies() -> Iterator[tuple[str, str, np.ndarray, np.ndarray, str]]:
        lengths = np.diff(source.utterance_end, prepend=0)
        for n in range(times):
            for name, speaker, row, length in zip(
                source.utterance_ids, source.speakers, source.utterance_start_row, lengths, strict=True
            ):
                part = slice(row, row + length)
                yield PARTITION, f"{name}-{n}", source.features[part], source.labels[part], speaker

    options = {"symbols": corpus.phonemes, "cmvn": "none", "dtype": corpus.dtype.name, "context": corpus.context}
    pack_utterances(copies(), folder, **options)
    return PackedCorpus(folder)

"""Packed corpora to measure on: random features in LibriSpeech's proportions, of any size."""

import json
import shutil
from pathlib import Path

import numpy as np

from phonedata import PackedCorpus, pack

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
    """`times` copies of the training partition as one longer partition, written without packing it again.

    It opens like any other; its digests are not those of its bytes.
    """
    source, context = corpus[PARTITION], corpus.context
    root, group = (json.loads((path / "zarr.json").read_text()) for path in (corpus.path, source.path))
    attributes = group["attributes"]["phonedata"]
    attributes["utterances"] *= times
    attributes["frames"] *= times
    attributes["rows"] = (source.num_rows - context) * times + context
    attributes["label_histogram"] = [count * times for count in attributes["label_histogram"]]
    partitions = root["attributes"]["phonedata"]["partitions"]
    root["attributes"]["phonedata"]["partitions"] = {PARTITION: partitions[PARTITION]}
    for path, document in ((folder, root), (folder / PARTITION, group)):
        path.mkdir(parents=True)
        (path / "zarr.json").write_text(json.dumps(document))
    ends = source.utterance_end + source.num_frames * np.arange(times)[:, None]
    write(folder / PARTITION / "utterance_end/c/0", [ends.reshape(-1)])
    for file, rows in (("features/c/0/0", source.features), ("labels/c/0", source.labels)):
        write(folder / PARTITION / file, [rows[:context], *[rows[context:]] * times])
    for name, strings in (("utterance_id", source.utterance_ids), ("speaker", source.speakers)):
        texts = [f"{text}-{n}".encode() for n in range(times) for text in strings]
        write(folder / PARTITION / f"{name}_bytes/c/0", [np.frombuffer(b"".join(texts), np.uint8)])
        write(folder / PARTITION / f"{name}_end/c/0", [np.cumsum([len(text) for text in texts])])
    return PackedCorpus(folder)


def write(path: Path, arrays: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True)
    with open(path, "wb") as file:
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)

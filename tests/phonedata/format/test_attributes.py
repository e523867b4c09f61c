"""Metadata and arrays fit each other, or the corpus is refused when it is opened: also where every digest fits."""

import errno
import mmap
import os
import shutil

import numpy as np
import pytest

from phonedata import FormatError, PackedCorpus, PhonedataError, SpecError, inspect, open_loader, pack
from tests.conftest import TINY_DIM, place_features, write_hw1p2
from tests.damage import change_attributes, make_digests_anew


@pytest.fixture
def packed(tiny_corpus, tmp_path):
    return shutil.copytree(tiny_corpus.path, tmp_path / "packed")


def lie(packed, file, **values):
    """Give attributes other values; a name with dots leads into tables, and None stands for itself."""

    def change(attributes):
        for name, value in values.items():
            *way, last = name.split("__")
            table = attributes
            for key in way:
                table = table[key]
            table[last] = value

    change_attributes(packed / file, change)
    make_digests_anew(packed)


ROOT_LIES = [
    *[("dtype", value) for value in ("object", "U1", ">f2", "float64", "f2", "bfloat16", 2, None, ["float16"])],
    *[("feature_dim", value) for value in (0, 27, True, -1, 5.0, "5", 4097, 1 << 62, None)],
    *[("context", value) for value in (-1, 11, 13, True, 12.0, 10_001, None)],
    *[("frame_shift_ms", value) for value in (0, -10, True, "10", 1e300, 1000, None)],
    *[("cmvn", value) for value in (None, "utterance", {}, {"kind": "both"}, {"kind": "train"}, {"kind": ["none"]})],
    *[("phonemes__symbols", value) for value in ([], ["A"], ["A"] * 40, [1] * 40, None, "abc", ["\x1b[2J"] * 40)],
    ("phonemes__fingerprint", "0" * 32),
    ("layout", "\x1b]0;owned\x07"),
    ("layout", ""),
    ("partitions", {}),
    ("partitions", {"../train-clean": {"bytes": 3, "digest": "0" * 32}}),
    ("left_out", [1]),
    ("left_out", None),
    ("frontend", "mfcc"),
]


@pytest.mark.parametrize(("name", "value"), ROOT_LIES)
def test_a_lie_of_the_root_is_refused_whoever_made_the_digests_anew(packed, name, value):
    lie(packed, "zarr.json", **{name: value})
    for look in (PackedCorpus, inspect):
        with pytest.raises(FormatError, match=r"packed/.*zarr\.json: .*(copy the corpus again|pack again)") as caught:
            look(packed)
        assert str(caught.value).isprintable()


PARTITION_LIES = [
    *[("utterances", value) for value in (0, 7, 9, True, 8.0, 10**30, None)],
    *[("frames", value) for value in (0, 283, 285, "284", None)],
    *[("rows", value) for value in (0, 391, 393, True, -(10**30), None)],
    *[("labelled", value) for value in (False, 1, None)],
    *[("lengths__min", value) for value in (0, 61, "1")],
    *[("lengths__mean", value) for value in (35.4, 1e300, None)],
    *[
        ("label_histogram", value)
        for value in (None, [], [284], [284] + [0] * 38, [285] + [0] * 39, [-1, 285] + [0] * 38)
    ],
    *[("mean", value) for value in (None, [0.0], [None] * TINY_DIM, [1e308] * TINY_DIM)],
    ("std", [-1.0] * TINY_DIM),
    ("order", "\x1b[0m"),
    ("order", None),
    ("files", {}),
    ("files", {"../../secret": {"bytes": 1, "xxh3_128": "0" * 32}}),
    ("files__features/c/0/0__chunks", []),
    ("files__utterance_end/c/0__chunks", ["0" * 32]),
]


@pytest.mark.parametrize(("name", "value"), PARTITION_LIES)
def test_a_lie_of_a_partition_is_refused_whoever_made_the_digests_anew(packed, name, value):
    lie(packed, "train-clean/zarr.json", **{name: value})
    with pytest.raises(FormatError, match=r"packed/train-clean/.*: .*(copy the corpus again|pack again)"):
        PackedCorpus(packed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"float16"', b'"float32"'),
        (b'"data_type": "float16"', b'"data_type": "bool"'),
        (b"4096", b"8192"),
        (b'"little"', b'"big"'),
        (b'"crc32c"', b'"zstd"'),
        (b'"fill_value": 0.0', b'"fill_value": 1.0'),
        (b'"end"', b'"start"'),
        (b"\n", b""),
    ],
)
def test_the_metadata_of_an_array_has_one_form(packed, old, new):
    """What another zarr reader would see is what our memory map shows."""
    file = packed / "dev-clean/features/zarr.json"
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))
    make_digests_anew(packed)
    with pytest.raises(FormatError, match="dev-clean/features/zarr.json: "):
        PackedCorpus(packed)


def test_a_lie_about_what_arrays_hold_is_found_by_whoever_looks(packed):
    lie(packed, "train-clean/zarr.json", lengths__min=2)
    with pytest.raises(FormatError, match="train-clean/utterance_end/c/0: is not where the utterances end"):
        inspect(packed)
    lie(packed, "train-clean/zarr.json", lengths__min=1)
    histogram = PackedCorpus(packed)["train-clean"].label_histogram.tolist()
    lie(packed, "train-clean/zarr.json", label_histogram=[*histogram[1:], histogram[0]])
    with pytest.raises(FormatError, match="train-clean/zarr.json: label_histogram does not count the labels"):
        PackedCorpus(packed).verify()


def test_ids_that_lead_out_of_a_folder_or_are_there_twice_are_refused(packed):
    file = packed / "dev-clean/utterance_id_bytes/c/0"
    ids = file.read_bytes()
    file.write_bytes(b"../" + ids[3:])
    make_digests_anew(packed)
    with pytest.raises(FormatError, match=r"utterance_id_bytes/c/0: holds '\.\./-012-0000', which is no id"):
        PackedCorpus(packed)["dev-clean"].utterance_ids  # noqa: B018
    (packed / "dev-clean/speaker_bytes/c/0").write_bytes(b"\x1b[2" * 3)
    make_digests_anew(packed)
    with pytest.raises(FormatError, match=r"speaker_bytes/c/0: holds '\\x1b\[2', which is no speaker"):
        PackedCorpus(packed)["dev-clean"].speakers  # noqa: B018
    file.write_bytes(ids[:12] + ids[:12] + ids[24:])
    (packed / "dev-clean/speaker_bytes/c/0").write_bytes(b"104" * 3)
    make_digests_anew(packed)
    with pytest.raises(FormatError, match="utterance_id_bytes: an id is there twice"):
        PackedCorpus(packed).verify()


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("kind", ["host", "resident", "slab"])
def test_a_label_that_is_no_class_is_named_at_the_first_look(packed, kind, anew):
    """It was an IndexError inside training."""
    frame = 31 + 1 + 60 + 1
    with open(packed / "train-clean/labels/c/0", "r+b") as file:
        file.seek(frame + 12 * 4)
        file.write(b"\xab")
    if anew:
        make_digests_anew(packed)
    wanted = (
        r"labels/c/0: frame 93 of partition train-clean \(frame 1 of 101-003-0000\) has the label 171, wanted 0 to 39"
    )
    with pytest.raises(FormatError, match=wanted):
        open_loader(packed, "dev-clean + train-clean", window=1, batch_size=8, kind=kind, order="slab")
    with pytest.raises(FormatError, match=wanted):
        PackedCorpus(packed).verify()


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (12, b"\xff", r"frame 0 of partition train-clean \(frame 0 of 100-000-0000\) has the label 255"),
        (3, b"\x02", "row 3 is padding, but has the label 2"),
        (4095, b"\x02", "row 4095 is padding, but has the label 2"),
        (12, b"\x07", r"rows from 0 on \(chunk 0\) differ from their digest"),
    ],
)
def test_labels_stand_where_frames_are(packed, row, value, message):
    with open(packed / "train-clean/labels/c/0", "r+b") as file:
        file.seek(row)
        file.write(value)
    with pytest.raises(FormatError, match=message):
        PackedCorpus(packed)["train-clean"].labels  # noqa: B018


@pytest.mark.parametrize("context", [0, 1, 50])
def test_labels_of_several_chunks_are_looked_at_across_their_borders(tmp_path, context):
    lengths = [40_000, 25_536 - 2 * context, 1, 65_536, 3]
    utterances = {f"{u}": (place_features(0, t, 1), np.arange(t) % 40) for u, t in enumerate(lengths)}
    write_hw1p2(tmp_path / "raw", "dev", utterances)
    pack(tmp_path / "raw", tmp_path / "packed", context=context)
    partition = PackedCorpus(tmp_path / "packed")["dev"]
    assert len(partition.labels) == partition.num_rows
    for row in (65_535, 65_536, 131_071, 131_072, partition.num_rows - 1 - context):
        file = tmp_path / "packed/dev/labels/c/0"
        data = bytearray(file.read_bytes())
        data[row] = 200
        file.write_bytes(data)
        with pytest.raises(FormatError, match="(frame|row) .* has the label 200"):
            PackedCorpus(tmp_path / "packed")["dev"].labels  # noqa: B018
        data[row] = partition.labels[row]
        file.write_bytes(data)


# Systems that refuse


def refuse(monkeypatch, number):
    def refused(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(mmap, "mmap", refused)


@pytest.mark.parametrize("kind", ["resident", "slab"])
def test_where_files_cannot_be_mapped_they_are_read(tiny_corpus, monkeypatch, kind):
    wanted = [batch.windows.clone() for batch in loader_of(tiny_corpus, kind).epoch(0)]
    corpus = PackedCorpus(tiny_corpus.path)
    refuse(monkeypatch, errno.ENODEV)
    assert all(a.windows.equal(b) for a, b in zip(loader_of(corpus, kind).epoch(0), wanted, strict=True))
    corpus.verify()
    monkeypatch.setattr("phonedata.format.corpus.available_memory", lambda: 100)
    with pytest.raises(
        PhonedataError, match="features/c/0/0: its file system maps no files, .* copy the corpus to a local"
    ):
        PackedCorpus(tiny_corpus.path)["dev-clean"].features  # noqa: B018


def loader_of(corpus, kind):
    return open_loader(corpus, "train-clean", window=2, batch_size=16, kind=kind, order="slab")


def test_too_many_open_files_is_our_own_error(tiny_corpus, monkeypatch):
    refuse(monkeypatch, errno.EMFILE)
    with pytest.raises(PhonedataError, match=r"features/c/0/0: cannot be read \(Too many open files\).*ulimit -n"):
        PackedCorpus(tiny_corpus.path)["dev-clean"].features  # noqa: B018


def test_a_name_that_is_too_long_is_our_own_error(tmp_path):
    with pytest.raises(PhonedataError, match="cannot be read"):
        PackedCorpus(tmp_path / ("a" * 300))


@pytest.mark.parametrize(
    "file", ["zarr.json", "train-clean/zarr.json", "train-clean/labels/zarr.json", "train-clean/labels/c/0"]
)
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(packed, file):
    (packed / file).unlink()
    os.mkfifo(packed / file)
    with pytest.raises(PhonedataError, match=file if "/" in file else "packed"):
        PackedCorpus(packed)


def test_a_corpus_of_an_older_format_says_how_to_get_a_new_one(packed):
    lie(packed, "zarr.json", format=1)
    with pytest.raises(
        FormatError, match="format version 1, but this phonedata reads version 2; pack again with: phonedata"
    ):
        PackedCorpus(packed)


def test_a_symbol_with_control_characters_is_no_phoneme():
    from phonedata import PhonemeSet

    with pytest.raises(SpecError, match=r"phoneme 1 is 'A\\x1b\[2J', but a symbol is"):
        PhonemeSet(("B", "A\x1b[2J"))

"""Foreign .npy files: read as numpy reads them, or refused by our own error; never a crash, a hang or a pickle."""

import os
import pickle
import random
import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phonedata import PackedCorpus, PhonedataError, RawDataError, pack
from phonedata.raw.npy import NpyReader, parse_header
from tests.conftest import place_features, place_label, write_hw1p2

READER = NpyReader()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 40), max_size=3),
    dtype=st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<f2", "<i8", ">i2", "u1", "<U5", ">U3", "S4", "?"]),
    fortran=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), None]),
)
def test_every_array_is_read_as_numpy_reads_it(tmp_path_factory, shape, dtype, fortran, version):
    path = str(tmp_path_factory.getbasetemp() / "one.npy")
    array = np.random.default_rng(0).integers(0, 200, shape).astype(dtype).copy(order="F" if fortran else "C")
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version=version)
    found = READER.load(path)
    assert found.dtype == array.dtype and found.shape == array.shape
    assert np.array_equal(found, array)


def test_one_buffer_serves_all_files(tmp_path):
    np.save(tmp_path / "small.npy", np.arange(5.0))
    np.save(tmp_path / "large.npy", np.arange(1e6))
    reader = NpyReader()
    assert reader.load(str(tmp_path / "large.npy"))[-1] == 999_999
    assert reader.load(str(tmp_path / "small.npy")).tolist() == [0, 1, 2, 3, 4]
    assert np.shares_memory(reader.load(str(tmp_path / "small.npy")), reader._buffer)
    assert isinstance(pickle.loads(pickle.dumps(reader)), NpyReader)


@pytest.mark.parametrize(("frames", "most"), [(9, 50), (20_000, 100_000)])  # within the first buffer, and beyond it
def test_a_read_that_stops_early_is_not_the_end_of_the_file(tmp_path, monkeypatch, frames, most):
    array = np.arange(frames * 7, dtype=np.float32).reshape(frames, 7)
    np.save(tmp_path / "a.npy", array)
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda fd, views: readv(fd, [views[0][:most]]))
    np.testing.assert_array_equal(NpyReader().load(str(tmp_path / "a.npy")), array)


def test_features_lie_on_a_cache_line(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((7, 28), np.float32))
    assert READER.load(str(tmp_path / "a.npy")).ctypes.data % 64 == 0


class Loaded:
    """Unpickling it would leave a trace."""

    trace = []

    def __reduce__(self):
        return Loaded.trace.append, ("executed",)


def test_objects_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([Loaded()], object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Loaded()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(RawDataError):
            READER.load(str(tmp_path / name))
    assert Loaded.trace == []


HEADERS = [
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2)",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -2), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3.0, 2), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }",
    "{'descr': '<f4', 'fortran_order': 0, 'shape': (3, 2), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': [3, 2], }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999999999999999), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), 'more': 1}",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3, 2), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4,<f4', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '(2,)<f4', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (999999999999,), }",
    "{'descr': 'nonsense', 'fortran_order': False, 'shape': (3,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 500 + ")" * 500 + "}",
    "[" * 5000,
    "9" * 5000,
    "{'descr': 'a' * 99, 'fortran_order': False, 'shape': (3, 2), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (3 2), }\n",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (03, 2), }\n",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (, 6), }\n",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (6), }\n",
    "\x00\x01\x02",
    "",
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_lying_headers_are_refused(tmp_path, header, version):
    body = header.encode("latin1")
    size = struct.pack("<H", len(body)) if version == 1 else struct.pack("<I", len(body))
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + size + body + bytes(24))
    with pytest.raises(RawDataError, match=r"a\.npy"):
        READER.load(str(path))


@pytest.mark.parametrize("shape", [(), (10,), (110, 28), (3, 2, 2)])
def test_a_header_with_any_byte_changed_says_what_it_says_to_numpy_or_is_refused(shape):
    whole = BytesIO()
    np.lib.format.write_array_header_1_0(whole, {"descr": "<f4", "fortran_order": False, "shape": shape})
    header, accepted = whole.getvalue(), 0
    for at in range(10, header.rindex(b"}") + 2):
        for value in {*range(32, 127), 0, 9, 10, 13, 128, 160, 255} - {header[at]}:
            changed = header[:at] + bytes([value]) + header[at + 1 :]
            try:
                dtype, fortran, found, start = parse_header(changed, "a.npy")
            except RawDataError:
                continue
            file = BytesIO(changed[8:])
            assert (found, fortran, dtype) == np.lib.format.read_array_header_1_0(file), changed
            assert start == 8 + file.tell()
            accepted += 1
    assert accepted > 40


def spoil(data: bytes, random: random.Random) -> bytes:
    """Cut, lengthen, or flip bits; mostly in the first 128 bytes, where the header is."""
    kind = random.randrange(4)
    if kind == 0:
        return data[: random.randrange(len(data))]
    if kind == 1:
        return data + random.randbytes(random.randrange(1, 64))
    changed = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(min(len(data), 128) if kind == 2 else len(data))
        changed[at] = random.randrange(256) if random.random() < 0.5 else changed[at] ^ (1 << random.randrange(8))
    return bytes(changed)


def fuzz(folder, cases: int, seed: int) -> dict[str, int]:
    """Spoil one file of a small corpus, `cases` times; every outcome is our error or exactly what numpy reads."""
    rng = random.Random(seed)
    utterances = {f"1-{u}-0": (place_features(u, 9 + u, 3) / 7, place_label(u, 9 + u)) for u in range(3)}
    write_hw1p2(folder / "raw", "train", utterances)
    files = sorted((folder / "raw").rglob("*.npy"))
    originals = {f: f.read_bytes() for f in files}
    outcomes = {"refused": 0, "packed": 0}
    for _ in range(cases):
        file = rng.choice(files)
        file.write_bytes(spoil(originals[file], rng))
        try:
            pack(folder / "raw", folder / "packed", replace=True, cmvn="none", dtype="float32", context=2, workers=1)
        except PhonedataError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error)
        else:
            outcomes["packed"] += 1
            compare(folder)
        file.write_bytes(originals[file])
    return outcomes


def compare(folder) -> None:
    """What was packed is what numpy reads from the spoiled files."""
    corpus = PackedCorpus(folder / "packed")
    train = corpus["train"]
    for u, name in enumerate(train.utterance_ids):
        features = np.load(folder / f"raw/train/mfcc/{name}.npy", allow_pickle=False)
        text = np.load(folder / f"raw/train/transcript/{name}.npy", allow_pickle=False)
        start = int(train.utterance_start_row[u])
        with np.errstate(over="ignore"):
            assert np.array_equal(train.features[start : start + len(features)], features.astype(np.float32))
        if text[0] in ("[SOS]", "<sos>", "<s>"):
            text = text[1:-1]
        labels = [corpus.phonemes.index(str(s)) for s in text]
        assert train.labels[start : start + len(features)].tolist() == labels


def test_spoiled_files_are_refused_or_packed_as_they_are(tmp_path):
    outcomes = fuzz(tmp_path, 120, 1)
    assert outcomes["refused"] > 40


@pytest.mark.long
def test_ten_thousand_spoiled_files(tmp_path):
    outcomes = fuzz(tmp_path, 10_000, 2)
    print(outcomes)
    assert outcomes["refused"] > 4000 and outcomes["packed"] > 100


@pytest.mark.parametrize("name", ["..", "a\nb", "\x1b[31mred", "a" * 252])
def test_hostile_names_do_not_travel(tmp_path, name):
    if name == "..":
        name = "..\\..\\x"
    utterances = {"1-1-0": (place_features(0, 9, 3), place_label(0, 9))}
    write_hw1p2(tmp_path / "raw", "train", utterances)
    try:
        os.rename(tmp_path / "raw/train/mfcc/1-1-0.npy", tmp_path / f"raw/train/mfcc/{name}.npy")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(RawDataError) as caught:
        pack(tmp_path / "raw", tmp_path / "packed")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)

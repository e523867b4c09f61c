"""verify finds every single changed byte, and every missing or foreign file."""

import os
import shutil

import numpy as np
import pytest

from phonedata import CorpusNotFound, FormatError, PackedCorpus, pack
from tests.conftest import write_hw1p2


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    random = np.random.default_rng(0)
    for name in ("train", "test"):
        utterances = {f"{i}-0-0": (random.normal(size=(20, 2)), random.integers(0, 40, 20)) for i in range(3)}
        write_hw1p2(root / "raw", name, utterances, labelled=name == "train")
    pack(root / "raw", root / "packed")
    return root / "packed"


def verify(root, progress=None):
    return PackedCorpus(root).verify(progress)


def all_files(root):
    return sorted(p for p in root.rglob("*") if p.is_file())


def positions(size, count):
    """First, last and evenly spread byte positions."""
    return sorted({i * (size - 1) // max(count - 1, 1) for i in range(count)})


def flip_and_verify(path, position, bit, root):
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))
    try:
        with pytest.raises(FormatError):
            verify(root)
    except BaseException as error:
        raise AssertionError(f"{path} byte {position} bit {bit}: {error!r}") from error
    finally:
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(bytes([byte]))


def test_intact_corpus_passes_and_counts_its_bytes(packed):
    assert verify(packed) == sum(p.stat().st_size for p in all_files(packed))


def test_any_flipped_bit_is_found_in_every_kind_of_file(packed):
    for path in all_files(packed):
        for n, position in enumerate(positions(path.stat().st_size, 5)):
            flip_and_verify(path, position, n % 8, packed)
    verify(packed)


@pytest.mark.long
def test_every_byte_of_every_json_is_covered(packed):
    for path in all_files(packed):
        if path.stat().st_size < 20_000:
            for position in range(path.stat().st_size):
                flip_and_verify(path, position, position % 8, packed)
    verify(packed)


def test_flipped_row_is_named_with_its_chunk(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    with open(tmp_path / "copy/train/features/c/0/0", "r+b") as file:
        file.seek(200)
        file.write(b"\x7f")
    with pytest.raises(FormatError, match=r"train/features/c/0/0: rows from 0 on \(chunk 0\) differ"):
        PackedCorpus(tmp_path / "copy").verify()


@pytest.mark.parametrize(
    "litter", [".DS_Store", "train/.DS_Store", "train/features/._zarr.json", "__MACOSX/train/x", "Thumbs.db"]
)
def test_what_file_managers_leave_is_no_damage(packed, tmp_path, litter):
    copy = shutil.copytree(packed, tmp_path / "copy")
    (copy / litter).parent.mkdir(parents=True, exist_ok=True)
    (copy / litter).write_bytes(b"x")
    assert verify(copy) == verify(packed)


def test_every_missing_file_is_found(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    for path in all_files(tmp_path / "copy"):
        path.rename(tmp_path / "away")
        with pytest.raises((FormatError, CorpusNotFound), match=path.name):
            verify(tmp_path / "copy")
        (tmp_path / "away").rename(path)
    verify(tmp_path / "copy")


@pytest.mark.parametrize("place", ["extra", "train/extra", "train/features/c/0/1", "test/labels/zarr.json"])
def test_foreign_file_is_found(packed, tmp_path, place):
    shutil.copytree(packed, tmp_path / "copy")
    (tmp_path / "copy" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "copy" / place).write_bytes(b"")
    with pytest.raises(FormatError, match="does not belong to the corpus"):
        verify(tmp_path / "copy")


def test_foreign_folder_and_link_are_found(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    (tmp_path / "copy/empty").mkdir()
    with pytest.raises(FormatError, match="does not belong"):
        verify(tmp_path / "copy")
    (tmp_path / "copy/empty").rmdir()
    shutil.move(tmp_path / "copy/train", tmp_path / "train")
    (tmp_path / "copy/train").symlink_to(tmp_path / "train", target_is_directory=True)
    with pytest.raises(FormatError, match="does not belong"):
        verify(tmp_path / "copy")


def test_shortened_and_lengthened_files_are_found(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    for path in all_files(tmp_path / "copy"):
        if path == tmp_path / "copy/zarr.json":
            continue
        data = path.read_bytes()
        for changed in (data[:-1], data + b"\0"):
            path.write_bytes(changed)
            with pytest.raises(FormatError):
                verify(tmp_path / "copy")
        path.write_bytes(data)
    assert os.path.isdir(tmp_path / "copy")


def test_progress_reaches_the_total(packed):
    seen = []
    verify(packed, lambda *event: seen.append(event))
    assert seen[-1][1] == seen[-1][2] > 0

"""The packed format, literally: bytes, metadata, and three foreign readers without a warning."""

import json
import os
import shutil
import struct
import subprocess

import numpy as np
import pytest
import xxhash

from phonedata import PackedCorpus, pack
from phonedata.format.zarr_files import CHUNK_ROWS, SMALL_CHUNK_ROWS, shard_index
from tests.conftest import TINY_LENGTHS, write_hw1p2


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """One partition of utterances of 2 and 1 frames, D = 2, context 1: small enough to write down."""
    root = tmp_path_factory.mktemp("format")
    write_hw1p2(
        root / "raw",
        "dev",
        {
            "a-1-é": (np.array([[1, -2], [0.5, 65504]], np.float32), np.array([3, 0])),
            "b": (np.array([[-1, 2.0**-24]], np.float32), np.array([39])),
        },
    )
    pack(root / "raw", root / "packed", cmvn="none", context=1)
    return root / "packed"


def test_feature_file_is_rows_padding_and_index(packed):
    data = (packed / "dev/features/c/0/0").read_bytes()
    rows = bytes.fromhex("00000000003c00c00038ff7b0000000000bc010000000000")
    assert data[:24] == rows
    assert data[24:16384] == bytes(16384 - 24)
    index = struct.pack("<QQ", 0, 16384)
    assert data[16384:] == index + bytes.fromhex("909dc738")  # crc32c


def test_label_file_pads_with_the_largest_value(packed):
    data = (packed / "dev/labels/c/0").read_bytes()
    assert data[:6] == bytes([255, 3, 0, 255, 39, 255])
    assert data[6:4096] == b"\xff" * (4096 - 6)
    assert data[4096:] == shard_index(1, 4096)


def test_small_arrays_are_their_values(packed):
    assert (packed / "dev/utterance_end/c/0").read_bytes() == struct.pack("<qq", 2, 3)
    assert (packed / "dev/utterance_id_bytes/c/0").read_bytes() == "a-1-éb".encode()
    assert (packed / "dev/utterance_id_end/c/0").read_bytes() == struct.pack("<qq", 6, 7)
    assert (packed / "dev/speaker_bytes/c/0").read_bytes() == b"ab"
    assert PackedCorpus(packed)["dev"].utterance_ids == ["a-1-é", "b"]


def test_digests_are_those_of_the_document(packed):
    root = json.loads((packed / "zarr.json").read_bytes())
    attributes = root["attributes"]["phonedata"]
    stated = attributes.pop("digest")
    canonical = json.dumps(root, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert xxhash.xxh3_128_hexdigest(canonical) == stated
    partition = (packed / "dev/zarr.json").read_bytes()
    assert attributes["partitions"]["dev"]["digest"] == xxhash.xxh3_128_hexdigest(partition)
    files = json.loads(partition)["attributes"]["phonedata"]["files"]
    data = (packed / "dev/features/c/0/0").read_bytes()
    chunk = xxhash.xxh3_128(data[:16384])
    assert files["features/c/0/0"]["chunks"] == [chunk.hexdigest()]
    whole = xxhash.xxh3_128_hexdigest(chunk.digest() + data[16384:])
    assert files["features/c/0/0"]["xxh3_128"] == whole
    assert set(files) == {
        p.relative_to(packed / "dev").as_posix() for p in (packed / "dev").rglob("*") if p.is_file()
    } - {"zarr.json"}


def test_root_attributes_say_what_training_needs(packed):
    found = PackedCorpus(packed).attributes
    assert found["format"] == 2
    assert found["phonemes"]["symbols"][0] == "[SIL]"
    assert (found["feature_dim"], found["frame_shift_ms"], found["context"], found["dtype"]) == (2, 10.0, 1, "float16")
    assert found["cmvn"]["kind"] == "none"
    assert found["layout"] == "hw1p2"
    assert found["frontend"] is None and found["left_out"] == []


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Two inner chunks, so that the shard index matters."""
    root = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    utterances = {f"{i}": (random.normal(size=(9000, 2)), random.integers(0, 40, 9000)) for i in range(9)}
    write_hw1p2(root / "raw", "train", utterances)
    pack(root / "raw", root / "packed")
    return root / "packed"


def test_zarr_reads_what_the_memory_map_shows(large):
    import zarr

    corpus = PackedCorpus(large)
    partition = corpus["train"]
    group = zarr.open_group(large, mode="r")
    assert sorted(group.group_keys()) == ["train"]
    names = ["features", "labels", "speaker_bytes", "speaker_end", "utterance_end", "utterance_id_bytes"]
    assert sorted(group["train"].array_keys()) == [*names, "utterance_id_end"]
    assert np.array_equal(group["train/features"][:], partition.features)
    assert np.array_equal(group["train/features"][65_000:66_000], partition.features[65_000:66_000])
    assert np.array_equal(group["train/labels"][:], partition.labels)
    assert np.array_equal(group["train/utterance_end"][:], partition.utterance_end)
    assert group["train/utterance_id_bytes"][:].tobytes() == b"012345678"
    assert group.attrs["phonedata"]["digest"] == corpus.digest
    assert group["train/features"].shards == (2 * CHUNK_ROWS, 2)


def test_tensorstore_reads_what_the_memory_map_shows(large):
    import tensorstore

    partition = PackedCorpus(large)["train"]
    for name, wanted in (
        ("features", partition.features),
        ("labels", partition.labels),
        ("utterance_end", partition.utterance_end),
        ("speaker_bytes", np.frombuffer(b"012345678", np.uint8)),
    ):
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(large / "train" / name)}}
        assert np.array_equal(tensorstore.open(spec).result().read().result(), wanted), name


def test_plain_memory_map_needs_no_phonedata(large):
    metadata = json.loads((large / "train/features/zarr.json").read_bytes())
    rows = np.memmap(large / "train/features/c/0/0", metadata["data_type"], "r", shape=tuple(metadata["shape"]))
    assert np.array_equal(rows, PackedCorpus(large)["train"].features)


def test_partitions_without_transcripts_have_no_labels(tiny_corpus):
    assert not (tiny_corpus.path / "test-clean/labels").exists()
    assert tiny_corpus["test-clean"].num_utterances == len(TINY_LENGTHS["test-clean"])


def test_nothing_is_read_when_a_corpus_is_opened(large, tmp_path):
    """Opening is cheap: of the values it looks at the sizes of the files only."""
    copy = shutil.copytree(large, tmp_path / "packed")
    for file in copy.glob("train/*/c/**/0"):
        if file.is_file():
            size = file.stat().st_size
            file.write_bytes(b"")
            os.truncate(file, size)  # a hole of the same size
    assert PackedCorpus(copy)["train"].num_frames == 81_000


@pytest.mark.parametrize("frames", [1, 4094, 4095, 8190, 65_533, 65_534, 65_535, 131_071])
def test_a_partition_smaller_than_a_chunk_is_one_chunk_of_its_rows_rounded_up(tmp_path, frames):
    """16,000 frames of 768 values were a file of 100 MB; every reader still reads them."""
    import tensorstore
    import zarr

    labels = np.arange(frames) % 40
    write_hw1p2(tmp_path / "raw", "dev", {"1": (np.arange(frames, dtype=np.float32)[:, None], labels)})
    pack(tmp_path / "raw", tmp_path / "packed", cmvn="none", dtype="float32", context=1)
    rows = frames + 2
    chunk = min(CHUNK_ROWS, -(-rows // SMALL_CHUNK_ROWS) * SMALL_CHUNK_ROWS)
    chunks = -(-rows // chunk)
    folder = tmp_path / "packed/dev"
    assert (folder / "features/c/0/0").stat().st_size == 4 * chunk * chunks + 16 * chunks + 4
    assert (folder / "labels/c/0").stat().st_size == chunk * chunks + 16 * chunks + 4
    partition = PackedCorpus(tmp_path / "packed")["dev"]
    assert (
        partition.features[1:-1, 0].tolist() == list(range(frames))
        and partition.labels.tolist()[1:-1] == labels.tolist()
    )
    group = zarr.open_group(tmp_path / "packed", mode="r")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "features")}}
    np.testing.assert_array_equal(group["dev/features"][:], partition.features)
    np.testing.assert_array_equal(group["dev/labels"][:], partition.labels)
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), partition.features)
    PackedCorpus(tmp_path / "packed").verify()


@pytest.mark.skipif("PHONEDATA_OTHER_PYTHON" not in os.environ, reason="PHONEDATA_OTHER_PYTHON names no other Python")
def test_the_zarr_of_another_python_reads_the_same(large):
    """e.g. PHONEDATA_OTHER_PYTHON=/path/to/python3.13 with the newest zarr; no warning is allowed there either."""
    code = (
        "import sys, zarr\n"
        "group = zarr.open_group(sys.argv[1], mode='r')\n"
        "assert len(list(group.members(max_depth=None))) == 8\n"
        "sys.stdout.buffer.write(group['train/features'][:].tobytes() + group['train/labels'][:].tobytes())"
    )
    command = [os.environ["PHONEDATA_OTHER_PYTHON"], "-W", "error", "-c", code, str(large)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    partition = PackedCorpus(large)["train"]
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout == partition.features.tobytes() + partition.labels.tobytes()


def test_zarr_group_of_a_corpus_holds_the_rows_that_are_mapped(tiny_corpus):
    group = tiny_corpus.zarr_group()
    for name, partition in tiny_corpus.partitions.items():
        np.testing.assert_array_equal(group[f"{name}/features"][:], partition.features)
        np.testing.assert_array_equal(group[f"{name}/utterance_end"][:], partition.utterance_end)

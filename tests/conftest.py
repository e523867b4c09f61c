"""Small corpora whose values name their place, made once per test session."""

import gc
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from phonedata.phonemes import ARPABET

if not torch.cuda.is_available():
    # Kernels for GPUs are interpreted then, which must be said before anybody imports triton.
    os.environ["TRITON_INTERPRET"] = "1"

REAL_RAW = Path(__file__).parents[2] / "shared/corpus/raw"


@pytest.fixture(autouse=True, scope="session")
def disk_need_not_spin():
    """Tests kill processes, not machines: what `fsync` adds outlives neither, and costs most of a small pack's time.

    That everything is synced before it gets its name is a law of its own, in test_pack_safety.
    """
    real, os.fsync = os.fsync, lambda fd: None
    yield
    os.fsync = real


@pytest.fixture(autouse=True, scope="session")
def trusted_code_of_the_tests(tmp_path_factory):
    """What tests trust is no business of who runs them."""
    before = os.environ.get("XDG_CONFIG_HOME")
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    yield
    if before is None:
        del os.environ["XDG_CONFIG_HOME"]
    else:
        os.environ["XDG_CONFIG_HOME"] = before


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_is_heard():
    """A shell that starts the tests in the background lets them ignore Ctrl-C, and a run would respect that.

    Commands that the tests start inherit what holds here.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def write_hw1p2(root: Path, partition: str, utterances: dict, labelled: bool = True) -> None:
    """Write utterance id -> (features (T, D), class indices (T,)) in the HW1P2 raw layout."""
    symbols = np.array(ARPABET.symbols)
    (root / partition / "mfcc").mkdir(parents=True, exist_ok=True)
    if labelled:
        (root / partition / "transcript").mkdir(exist_ok=True)
    for utterance, (features, classes) in utterances.items():
        np.save(root / partition / "mfcc" / f"{utterance}.npy", features)
        if labelled:
            text = np.concatenate([["[SOS]"], symbols[classes], ["[EOS]"]]).astype("<U5")
            np.save(root / partition / "transcript" / f"{utterance}.npy", text)


def write_audio(root: Path, utterances: int = 4) -> None:
    """Write root/train/u0.wav and so on, a quarter of a second of noise each, with a .phn of two phones beside it."""
    import soundfile

    (root / "train").mkdir(parents=True)
    for number, samples in enumerate(np.random.default_rng(0).normal(scale=0.1, size=(utterances, 4000))):
        soundfile.write(root / f"train/u{number}.wav", samples, 16000)
        (root / f"train/u{number}.phn").write_text("0 2000 sil\n2000 4000 aa\n")


def place_features(utterance: int, frames: int, dim: int) -> np.ndarray:
    """(T, D) float32: utterance * 1e5 + frame * 1e2 + coefficient + 1, exact in float32, never zero."""
    frame, coefficient = np.mgrid[:frames, :dim]
    return (utterance * 1e5 + frame * 1e2 + coefficient + 1).astype(np.float32)


def place_label(utterance: int, frames: int) -> np.ndarray:
    """(T,) class indices that differ between neighbours: (7 * utterance + frame) mod 40."""
    return (7 * utterance + np.arange(frames)) % 40


TINY_DIM = 5
TINY_LENGTHS = {
    "train-clean": (31, 1, 60, 2, 17, 45, 8, 120),
    "train-other": (23, 77, 1, 12),
    "dev-clean": (19, 3, 40),
    "test-clean": (25, 6),
}


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Every file below a folder, by its name there."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory) -> Path:
    """A raw folder of 4 partitions (test-clean without transcripts), D = 5, lengths TINY_LENGTHS.

    Utterances count on over the partitions in the order of TINY_LENGTHS; see `place_features` and `place_label`.
    """
    root = tmp_path_factory.mktemp("tiny") / "raw"
    number = 0
    for partition, lengths in TINY_LENGTHS.items():
        utterances = {}
        for frames in lengths:
            key = f"{number // 3 + 100}-{number:03d}-0000"
            utterances[key] = place_features(number, frames, TINY_DIM), place_label(number, frames)
            number += 1
        write_hw1p2(root, partition, utterances, labelled=partition != "test-clean")
    return root


@pytest.fixture(scope="session")
def tiny_corpus(tiny_raw):
    """`tiny_raw` packed with defaults (float16, CMVN per utterance), but context 12."""
    from phonedata import PackedCorpus, pack

    pack(tiny_raw, tiny_raw.parent / "packed", context=12)
    return PackedCorpus(tiny_raw.parent / "packed")


@pytest.fixture(scope="session")
def tiny_exact_corpus(tiny_raw):
    """`tiny_raw` packed with cmvn none and float32, context 12: every value names its place."""
    from phonedata import PackedCorpus, pack

    pack(tiny_raw, tiny_raw.parent / "exact", context=12, cmvn="none", dtype="float32")
    return PackedCorpus(tiny_raw.parent / "exact")


LEARNABLE_DIM = 12


@pytest.fixture(scope="session")
def learnable_corpus(tmp_path_factory):
    """train-clean (6,000 frames), dev-clean (1,500), test-clean (900, unlabelled), D = 12, context 50.

    Every class has its own mean, 2.5 noise deviations from others on average, and stays for 3 to 12 frames, so that a
    small net soon beats the majority class and context helps.
    """
    from phonedata import PackedCorpus, pack

    root = tmp_path_factory.mktemp("learnable")
    random = np.random.default_rng(20)
    means = random.normal(size=(40, LEARNABLE_DIM))
    for partition, count in (("train-clean", 40), ("dev-clean", 10), ("test-clean", 6)):
        utterances = {}
        for u in range(count):
            classes = np.repeat(random.integers(0, 40, 60), random.integers(3, 13, 60))[:150]
            features = means[classes] + 0.55 * random.normal(size=(len(classes), LEARNABLE_DIM))
            utterances[f"{partition[0]}{u // 4}-{u}-0000"] = features.astype(np.float32), classes
        write_hw1p2(root / "raw", partition, utterances, labelled=partition != "test-clean")
    pack(root / "raw", root / "packed")
    return PackedCorpus(root / "packed")


def producers() -> list[threading.Thread]:
    """The loaders' threads that are alive."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("phonedata-")]


@pytest.fixture
def no_producers_left():
    gc.freeze()  # what stands already need not be looked through again: a fifth of a second each time
    yield
    gc.collect()
    gc.unfreeze()
    assert producers() == []

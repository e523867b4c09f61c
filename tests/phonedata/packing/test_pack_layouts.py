"""Laws of packing for the other layouts: random libriphone, Kaldi and audio corpora, every frame and label."""

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phonedata import ARPABET, PackedCorpus, RawDataError, pack
from phonedata.raw.frontend import FrontEnd, resample
from tests.phonedata.packing.test_extract import label_truth, soundfile, write_alignment
from tests.phonedata.packing.test_pack import assert_packed, random_utterances
from tests.phonedata.raw.test_layouts import kaldiio, torch, write_kaldi, write_libriphone

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=400)
LENGTHS = st.lists(st.one_of(st.just(1), st.integers(1, 60), st.integers(1, 5000)), min_size=1, max_size=5)
PACKED = {
    "dtype": st.sampled_from(["float16", "float32"]),
    "context": st.integers(0, 60),
    "workers": st.integers(1, 3),
}


def drawn(seed, lengths, dim, dtype, constant):
    """Random utterances; their first coefficient does not vary where `constant`."""
    utterances = random_utterances(seed, lengths, dim, dtype)
    for features, _ in utterances.values():
        features[:, 0] = 7.3 if constant else features[:, 0]
    return utterances


def libriphone(root, seed, lengths, dim, dtype, constant, transposed, options):
    told = drawn(seed, lengths, dim, dtype, constant)
    write_libriphone(root / "raw", told)
    if transposed:
        for u, (features, _) in told.items():
            torch.save(torch.from_numpy(features.T.copy()).T, root / f"raw/feat/train/{u}.pt")
    pack(root / "raw", root / "packed", **options)
    # float16 tensors are widened before anything is added up
    assert_packed(PackedCorpus(root / "packed"), "train", told)


def kaldi(root, seed, lengths, dim, wide, compression, constant, zipped, pieces, options):
    told = drawn(seed, lengths, dim, np.float64 if wide and compression is None else np.float32, constant)
    write_kaldi(root / "raw/train", told, compression)
    lines = (root / "raw/train/ali.txt").read_text().splitlines(keepends=True)
    (root / "raw/train/ali.txt").unlink()
    (root / "raw/phones.txt").write_text("".join(f"p{i} {i}\n" for i in range(40)))
    for n in range(pieces):
        text = "".join(lines[n::pieces]).encode()
        if zipped:
            (root / f"raw/train/ali.{n + 1}.txt.gz").write_bytes(gzip.compress(text))
        else:
            (root / f"raw/train/ali.{n + 1}.txt").write_bytes(text)
    if compression is not None:  # what kaldiio itself finds in the ark is what must be packed
        scp = root / "raw/train/absolute.scp"
        scp.write_text((root / "raw/train/feats.scp").read_text().replace("mfcc/", f"{root}/raw/train/"))
        with np.errstate(all="ignore"):
            told = {u: (np.float32(f), told[u][1]) for u, f in kaldiio.load_scp(str(scp)).items()}
        scp.unlink()
    if not all(np.isfinite(features).all() for features, _ in told.values()):
        with pytest.raises(RawDataError, match="wanted finite numbers"):
            pack(root / "raw", root / "packed", **options)
        return
    pack(root / "raw", root / "packed", **options)
    assert_packed(PackedCorpus(root / "packed"), "train", told)


def audio(root, seed, seconds, rate, suffix, kind, options):
    random, told = np.random.default_rng(seed), {}
    front = FrontEnd()
    for n, hundredths in enumerate(seconds):
        file = root / f"raw/train/s{n}/u{n}{kind}"
        file.parent.mkdir(parents=True)
        soundfile.write(file, random.normal(0, 0.1, hundredths * rate // 100), rate)
        # Borders at whole hundredths never touch the centre of a frame, at 12.5 ms and every 10 ms after.
        inner = random.choice(np.arange(1, hundredths), min(hundredths - 1, 8), replace=False)
        borders = [0, *sorted(int(b) for b in inner), hundredths]
        names = random.choice(["sil", "HH", "AH0", "L", "OW1"], len(borders))
        phones = [(a / 100, b / 100, str(s)) for a, b, s in zip(borders, borders[1:], names)]
        write_alignment(file.with_suffix(suffix), phones, rate)
        samples = soundfile.read(file, dtype="float32")[0] * np.float32(32768)
        features = front.compute(resample(samples, rate, front.rate_hz))
        classes = [ARPABET.index(symbol) for symbol in label_truth(phones, len(features))]
        told[f"s{n}-0-u{n}"] = features, np.array(classes)
    pack(root / "raw", root / "packed", **options)
    assert_packed(PackedCorpus(root / "packed"), "train", told)


SHAPES = {"seed": st.integers(0, 1000), "lengths": LENGTHS, "dim": st.integers(1, 80), "constant": st.booleans()}
LIBRIPHONE = {
    **SHAPES,
    "dtype": st.sampled_from([np.float16, np.float32, np.float64]),
    "transposed": st.booleans(),
    "options": st.fixed_dictionaries(PACKED),
}
KALDI = {
    **SHAPES,
    "wide": st.booleans(),
    "compression": st.sampled_from([None, None, 2, 3, 5]),
    "zipped": st.booleans(),
    "pieces": st.integers(1, 3),
    "options": st.fixed_dictionaries(PACKED),
}
AUDIO = {
    "seed": st.integers(0, 1000),
    "seconds": st.lists(st.one_of(st.just(3), st.integers(3, 400)), min_size=1, max_size=3),  # hundredths of one
    "rate": st.sampled_from([8000, 16000, 22050, 44100]),
    "suffix": st.sampled_from([".TextGrid", ".phn", ".lab"]),
    "kind": st.sampled_from([".wav", ".flac"]),
    "options": st.fixed_dictionaries(PACKED),
}


@FEW
@given(**LIBRIPHONE)
def test_any_libriphone_corpus_is_packed_frame_for_frame(tmp_path_factory, **case):
    libriphone(tmp_path_factory.mktemp("l"), **case)


@FEW
@given(**KALDI)
def test_any_kaldi_corpus_is_packed_frame_for_frame(tmp_path_factory, **case):
    kaldi(tmp_path_factory.mktemp("k"), **case)


@FEW
@given(**AUDIO)
def test_any_audio_corpus_is_packed_frame_for_frame(tmp_path_factory, **case):
    audio(tmp_path_factory.mktemp("a"), **case)


@pytest.mark.long
@MANY
@given(**LIBRIPHONE)
def test_400_libriphone_corpora(tmp_path_factory, **case):
    libriphone(tmp_path_factory.mktemp("l"), **case)


@pytest.mark.long
@MANY
@given(**KALDI)
def test_400_kaldi_corpora(tmp_path_factory, **case):
    kaldi(tmp_path_factory.mktemp("k"), **case)


@pytest.mark.long
@MANY
@given(**AUDIO)
def test_400_audio_corpora(tmp_path_factory, **case):
    audio(tmp_path_factory.mktemp("a"), **case)

"""transcribe: from audio to the phones that packing and predicting the same audio gives; bad audio is one sentence."""

from pathlib import Path

import numpy as np
import pytest

from phonedata import FrontEnd, PackedCorpus, SpecError, audio_features, extract, frontend_of, pack
from phonetrain.cli.main import exit_code
from phonetrain.errors import ConfigError
from phonetrain.results.predict import predict
from phonetrain.results.transcribe import transcribe
from phonetrain.runs.directory import Run
from tests.training import fit_tiny

soundfile = pytest.importorskip("soundfile", reason="the extra [audio] is not installed")
pytest.importorskip("kaldi_native_fbank", reason="the extra [audio] is not installed")
pytest.importorskip("soxr", reason="the extra [audio] is not installed")
PHONES = ("AA", "IY", "S", "M")


def write_tones(root: Path, partition: str, count: int, rate: int = 16000) -> None:
    """Audio whose phones are tones of their own pitch, with .lab files in seconds."""
    random = np.random.default_rng(len(partition))
    (root / partition).mkdir(parents=True)
    for number in range(count):
        phones, lengths = random.integers(0, 4, 12), random.integers(8, 20, 12) * rate // 100
        pitch = np.repeat(300.0 * (1 + phones), lengths)
        wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.01 * random.normal(size=len(pitch))
        soundfile.write(root / partition / f"{partition[0]}{number}-1-{number}.wav", wave, rate, subtype="PCM_16")
        ends = np.cumsum(lengths) / rate
        lines = [f"{b:.4f} {e:.4f} {PHONES[p]}" for b, e, p in zip([0, *ends[:-1]], ends, phones)]
        (root / partition / f"{partition[0]}{number}-1-{number}.lab").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("audio") / "audio"
    write_tones(root, "train", 12)
    write_tones(root, "dev", 3)
    pack(root, root.parent / "packed")
    return root


@pytest.fixture(scope="module")
def tone_run(audio) -> Run:
    return fit_tiny(
        PackedCorpus(audio.parent / "packed"),
        audio.parent / "run",
        "batch_size=64",
        "augment.freq_mask=0",
        "model.neighbours=1",
    )


@pytest.mark.parametrize("smooth", ["none", "viterbi"])
def test_transcript_is_what_packing_and_predicting_the_audio_gives(audio, tone_run, tmp_path, smooth):
    wanted = predict(tone_run, "dev", tmp_path / "dev.csv", smooth=smooth).read_text()
    assert transcribe(sorted((audio / "dev").glob("*.wav")), tone_run, form="csv", smooth=smooth) == wanted


@pytest.mark.parametrize("cmvn", ["utterance", "train", "none"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_features_are_those_that_packing_stores(audio, tmp_path, cmvn, dtype):
    frontend = FrontEnd(c0="last", deltas=1, coefficients=13, rate_hz=8000)
    extract(audio, tmp_path / "raw", frontend=frontend, workers=1)
    more = {"train_partition": "train"} if cmvn == "train" else {}
    pack(tmp_path / "raw", tmp_path / "packed", cmvn=cmvn, dtype=dtype, **more)
    corpus = PackedCorpus(tmp_path / "packed")
    assert frontend_of(corpus) == FrontEnd(c0="last", deltas=1, coefficients=13, rate_hz=8000, high_hz=4000.0)
    part = corpus["dev"]
    for name, start in zip(part.utterance_ids, part.utterance_start_row):
        found = audio_features(audio / "dev" / f"{name}.wav", corpus)
        np.testing.assert_array_equal(found, part.features[start : start + len(found)])


def test_command_prints_phones_with_times_and_writes_textgrids(audio, tone_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = [str(file) for file in sorted((audio / "dev").glob("*.wav"))]
    words = ["transcribe", *files, "--run", str(tone_run.path)]
    assert exit_code(words) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in lines} == {Path(file).stem for file in files} and {line[4] for line in lines} > {"AA"}
    assert exit_code([*words, "--as", "textgrid"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == Path("transcripts") and len(list(folder.glob("*.TextGrid"))) == 3
    assert exit_code([*words, "--as", "textgrid"]) == 1
    assert "transcripts: is there already; give another place with --out, or add --replace" in capsys.readouterr().err
    assert exit_code([*words, "--as", "textgrid", "--replace", "--json"]) == 0


def test_bad_audio_is_one_sentence_and_nothing_is_written(audio, tone_run, tmp_path, capsys):
    good = str(next((audio / "dev").glob("*.wav")))
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((16000, 2)), 16000)
    (tmp_path / "text.wav").write_text("this is no audio")
    for name, words in (("empty", "shorter than one frame"), ("stereo", "2 channels"), ("text", "no audio"),
                        ("gone", "not a file")):  # fmt: skip
        line = ["transcribe", good, str(tmp_path / f"{name}.wav"), "--run", str(tone_run.path)]
        for more in ([], ["--out", str(tmp_path / "out")], ["--as", "textgrid", "--out", str(tmp_path / "out")]):
            assert exit_code([*line, *more]) == 1
            out, err = capsys.readouterr()
            assert words in err and err.count("\n") == 1 and out == ""
    assert {entry.name for entry in tmp_path.iterdir()} == {"empty.wav", "stereo.wav", "text.wav"}
    with pytest.raises(ConfigError, match="has its name too"):
        transcribe([good, good], tone_run)


def test_another_sampling_rate_is_resampled(audio, tone_run, tmp_path):
    write_tones(tmp_path, "dev", 1, rate=22050)
    (file,) = tmp_path.glob("dev/*.wav")
    assert len(transcribe(file, tone_run).splitlines()) > 3


def test_corpus_without_front_end_is_refused_with_what_to_do(learnable_corpus, audio, tmp_path):
    run = fit_tiny(learnable_corpus, tmp_path / "run", "epochs=1")
    with pytest.raises(SpecError, match=r"does not record how .* frontend.toml .* pack again: phonedata pack RAW"):
        transcribe(next((audio / "dev").glob("*.wav")), run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"c0": None}, "c0 not said"),
        ({"energy": True}, "energy not known"),
        ({"snip_edges": False}, "snip_edges is False"),
        ({"kind": "plp"}, "kind is 'plp'"),
        ({"rate_hz": "16k"}, "wrong type"),
        ({"mel_bins": 4}, "wanted 1 <= coefficients"),
    ],
)
def test_front_end_that_cannot_be_repeated_is_refused(change, words):
    table = {name: value for name, value in (FrontEnd().describe() | change).items() if value is not None}
    with pytest.raises(SpecError, match=words):
        FrontEnd.of(table)


@pytest.mark.parametrize("frontend", [FrontEnd(), FrontEnd(c0="last", lifter=0.0), FrontEnd("fbank", deltas=2)])
def test_a_described_front_end_is_read_back(frontend):
    again = FrontEnd.of(frontend.describe())
    assert again.describe() == frontend.describe() and again.dim == frontend.dim

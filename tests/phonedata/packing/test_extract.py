"""Audio and alignments: the label of a frame is the phone that covers its centre, whatever the alignment's format."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phonedata import ARPABET, CorpusExists, PackedCorpus, RawDataError, SpecError, extract, pack
from phonedata.errors import CorpusNotFound, PhonedataError
from phonedata.raw.alignments import read_alignment
from phonedata.raw.frontend import FrontEnd, resample
from phonedata.raw.open import open_raw
from tests.conftest import write_hw1p2

pytest.importorskip("kaldi_native_fbank", reason="the extra [audio] is not installed")
pytest.importorskip("praatio", reason="the extra [audio] is not installed")
soundfile = pytest.importorskip("soundfile", reason="the extra [audio] is not installed")
PHONES = [
    (0.00, 0.11, "sil"),
    (0.11, 0.26, "HH"),
    (0.26, 0.40, "AH0"),
    (0.40, 0.47, "L"),
    (0.47, 0.75, "OW1"),
    (0.75, 0.9, ""),
]


def write_alignment(file, phones, rate):
    """Write `phones`, (start, end, symbol) in seconds, in the format that the suffix of `file` names."""
    kind = file.suffix.lower()
    if kind == ".textgrid":
        intervals = "".join(
            f'        intervals [{n}]:\n            xmin = {a}\n            xmax = {b}\n            text = "{s}"\n'
            for n, (a, b, s) in enumerate(phones, start=1)
        )
        end = phones[-1][1]
        text = (
            f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\nxmax = {end}\n'
            f"tiers? <exists>\nsize = 1\nitem []:\n"
            f'    item [1]:\n        class = "IntervalTier"\n        name = "phones"\n'
            f"        xmin = 0\n        xmax = {end}\n"
            f"        intervals: size = {len(phones)}\n{intervals}"
        )
    elif kind == ".phn":
        text = "".join(f"{round(a * rate)} {round(b * rate)} {s or 'pau'}\n" for a, b, s in phones)
    elif rate == 8000:  # the HTK kind, so that both kinds of .lab are seen
        text = "".join(f"{round(a * 1e7)} {round(b * 1e7)} {s or 'sil'}\n" for a, b, s in phones)
    else:
        text = "signal x\n#\n" + "".join(f"    {b:.4f}  100  {s or 'pau'}\n" for _, b, s in phones)
    file.write_text(text)


def write_audio(
    root, suffix=".TextGrid", rate=16000, seconds=0.9, phones=PHONES, name="train/spk1/utt1.wav", audio=None
):
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(3).normal(0, 0.1, int(seconds * rate)) if audio is None else audio
    soundfile.write(file, noise, rate)
    if suffix:
        write_alignment(file.with_suffix(suffix), phones, rate)
    return file


def label_truth(phones, num_frames, rate=16000):
    """The phone at the centre of every frame, one frame at a time; [SIL] where there is none."""
    labels = []
    for t in range(num_frames):
        centre = (t * rate // 100 + rate // 40 / 2) / rate
        found = [s for a, b, s in phones if a <= centre < b]
        symbol = found[0].rstrip("012") if found else ""
        labels.append("[SIL]" if symbol in ("", "sil") else symbol)
    return labels


@pytest.mark.parametrize("suffix", [".TextGrid", ".phn", ".PHN", ".lab"])
@pytest.mark.parametrize("rate", [16000, 22050, 8000])
def test_the_label_is_the_phone_that_covers_the_centre(tmp_path, suffix, rate):
    write_audio(tmp_path, suffix, rate)
    raw = open_raw(tmp_path)
    features, labels = raw.partitions[0].read(0)
    assert raw.layout == "audio" and raw.phonemes == ARPABET
    assert features.shape == (1 + (14400 - 400) // 160, 28) and features.dtype == np.float32
    assert [ARPABET.symbols[c] for c in labels] == label_truth(PHONES, len(features))


def test_a_lab_file_may_begin_with_its_hash(tmp_path):
    """CMU ARCTIC's do: nothing stands before the #."""
    (tmp_path / "a.lab").write_text("#\n0.11 100 pau\n0.26 100 hh\n")
    found = read_alignment(str(tmp_path / "a.lab"), 16000)
    assert found.symbols == ["pau", "hh"]
    assert found.starts.tolist() == [0, 0.11] and found.ends.tolist() == [0.11, 0.26]


def test_extracted_folder_packs_to_what_the_audio_packs_to(tmp_path):
    write_audio(tmp_path / "audio")
    write_audio(tmp_path / "audio", name="train/spk2/utt1.flac", seconds=0.7, phones=PHONES[:4])
    write_audio(tmp_path / "audio", suffix="", name="test/spk3/utt9.wav", seconds=0.5)
    report = extract(tmp_path / "audio", tmp_path / "raw", workers=1)
    assert {name: u for name, (u, _) in report.partitions.items()} == {"train": 2, "test": 1}
    for source in ("audio", "raw"):
        pack(tmp_path / source, tmp_path / f"packed-{source}")
    ours, direct = PackedCorpus(tmp_path / "packed-raw"), PackedCorpus(tmp_path / "packed-audio")
    for name in ("train", "test"):
        assert ours[name].utterance_ids == direct[name].utterance_ids
        assert ours[name].speakers == direct[name].speakers
        np.testing.assert_array_equal(ours[name].features, direct[name].features)
    np.testing.assert_array_equal(ours["train"].labels, direct["train"].labels)
    assert ours["train"].speakers == ["spk1", "spk2"] and not ours["test"].labelled
    with pytest.raises(CorpusExists):
        extract(tmp_path / "audio", tmp_path / "raw")


def test_extract_is_the_same_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("phonedata.packing.extract.MOST_PER_TASK", 1)
    for speaker in range(3):
        write_audio(tmp_path / "audio", name=f"train/s{speaker}/u.wav", seconds=0.9 + speaker / 10)
    for workers in (1, 2):
        extract(tmp_path / "audio", tmp_path / f"raw{workers}", workers=workers)
    files = sorted(f.relative_to(tmp_path / "raw1") for f in (tmp_path / "raw1").rglob("*") if f.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "raw1" / file).read_bytes() == (tmp_path / "raw2" / file).read_bytes(), file


def test_every_extracted_file_is_durable_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    write_audio(tmp_path / "audio")
    synced, missing = set(), []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    rename = os.rename

    def noting(source, target, **more):
        if Path(target) == tmp_path / "raw":
            folder = Path(source)
            missing.append([file for file in (folder, *folder.rglob("*")) if file.stat().st_ino not in synced])
        rename(source, target, **more)

    monkeypatch.setattr(os, "rename", noting)
    extract(tmp_path / "audio", tmp_path / "raw", workers=1)
    assert missing == [[]]
    assert tmp_path.stat().st_ino in synced


def make_audio(folder, count):
    for number in range(count):
        write_audio(folder, ".phn", name=f"train/s/u{number}.wav", seconds=0.9 + number / 50)
    write_audio(folder, "", name="test/s/t.wav")


def all_bytes(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_two_extracts_to_one_target_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("phonedata.packing.extract.MOST_PER_TASK", 1)
    make_audio(tmp_path / "audio", 4)
    refused = []

    def second(stage, done, total, unit):
        if done == 2:
            with pytest.raises(PhonedataError, match="another process is writing to it") as caught:
                extract(tmp_path / "audio", tmp_path / "raw", workers=1)
            refused.append(caught.value)

    report = extract(tmp_path / "audio", tmp_path / "raw", workers=1, progress=second)
    assert len(refused) == 1 and report.partitions["train"][0] == 4
    assert len(list((tmp_path / "raw/train/mfcc").iterdir())) == 4
    assert not list(tmp_path.glob("raw?*"))


def test_an_extract_whose_files_were_taken_away_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("phonedata.packing.extract.MOST_PER_TASK", 1)
    make_audio(tmp_path / "audio", 3)

    def thief(stage, done, total, unit):
        if done == 4:
            next(tmp_path.rglob("train/mfcc/*.npy")).unlink()

    with pytest.raises(PhonedataError, match="train: 2 and 3 files of .* wanted 3 each"):
        extract(tmp_path / "audio", tmp_path / "raw", workers=1, progress=thief)
    assert not list(tmp_path.glob("raw*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_extract_continues_where_it_stopped(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("phonedata.packing.extract.MOST_PER_TASK", 1)
    make_audio(tmp_path / "audio", 5)
    extract(tmp_path / "audio", tmp_path / "whole", workers=1)

    def stop(stage, done, total, unit):
        if done == 3:
            raise KeyboardInterrupt

    def begin():
        with pytest.raises(KeyboardInterrupt):
            extract(tmp_path / "audio", tmp_path / "raw", workers=workers, progress=stop)
        assert not (tmp_path / "raw").exists()

    begin()
    seen = []
    report = extract(tmp_path / "audio", tmp_path / "raw", workers=workers, progress=lambda *now: seen.append(now[1]))
    assert seen == [4, 5, 6] and "3 utterances kept" in str(report)
    assert report.partitions == extract(tmp_path / "audio", tmp_path / "again", workers=1).partitions
    assert all_bytes(tmp_path / "raw") == all_bytes(tmp_path / "whole")
    shutil.rmtree(tmp_path / "raw")
    begin()
    # Another front end is another result: nothing of the first try may be in it.
    report = extract(tmp_path / "audio", tmp_path / "raw", workers=workers, frontend=FrontEnd(coefficients=13))
    assert "kept" not in str(report)
    assert {np.load(f).shape[1] for f in (tmp_path / "raw").rglob("mfcc/*.npy")} == {13}
    assert not list(tmp_path.glob("raw?*"))


@pytest.mark.parametrize("guard", ["", "if __name__ == '__main__': "])
def test_a_script_without_a_guard_ends_in_one_line_that_names_it(tmp_path, guard):
    make_audio(tmp_path / "audio", 2)
    script = tmp_path / "script.py"
    script.write_text(f"import phonedata\n{guard}print(phonedata.extract('audio', 'raw', workers=2))\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )
    if guard:
        assert done.returncode == 0 and "2 utterances" in done.stdout, done.stderr
        return
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1, done.stderr
    assert 'under `if __name__ == "__main__":` or with workers=1' in done.stderr.splitlines()[-1]


def test_an_alignment_without_audio_is_named(tmp_path):
    write_audio(tmp_path / "audio")
    write_audio(tmp_path / "audio", name="train/spk1/lost.wav")
    (tmp_path / "audio/train/spk1/lost.wav").unlink()
    with pytest.raises(RawDataError, match=r"spk1/lost.TextGrid: no audio beside it \(.wav or .flac\)"):
        pack(tmp_path / "audio", tmp_path / "packed")
    report = pack(tmp_path / "audio", tmp_path / "packed", skip_bad=True)
    assert [one.utterance for one in report.left_out] == ["spk1-0-lost"]


def test_an_extract_goes_on_where_the_disk_was_full(tmp_path, monkeypatch):
    monkeypatch.setattr("phonedata.packing.extract.MOST_PER_TASK", 1)
    make_audio(tmp_path / "audio", 4)
    extract(tmp_path / "audio", tmp_path / "whole", workers=1)
    save, saved = np.save, []

    def save_until_full(file, array):
        saved.append(file)
        if len(saved) == 6:
            raise OSError("1000 requested and 200 written")  # numpy's words for it
        save(file, array)

    monkeypatch.setattr(np, "save", save_until_full)
    with pytest.raises(PhonedataError, match=r"cannot be written \(1000 requested and 200 written\); free space"):
        extract(tmp_path / "audio", tmp_path / "raw", workers=1)
    report = extract(tmp_path / "audio", tmp_path / "raw", workers=1)
    assert "3 utterances kept from an interrupted call" in report.notes
    assert all_bytes(tmp_path / "raw") == all_bytes(tmp_path / "whole")


def test_a_target_that_no_folder_can_hold_is_our_own_error(tmp_path):
    make_audio(tmp_path / "audio", 1)
    (tmp_path / "file").write_text("")
    with pytest.raises(PhonedataError, match=r"file/raw.packing: Not a directory; choose another place"):
        extract(tmp_path / "audio", tmp_path / "file/raw")


def test_a_foreign_inventory_is_kept_and_recorded(tmp_path):
    phones = [(0.0, 0.2, "h#"), (0.2, 0.4, "axr"), (0.4, 0.6, "kcl"), (0.6, 0.9, "h#")]
    write_audio(tmp_path / "audio", ".phn", phones=phones)
    extract(tmp_path / "audio", tmp_path / "raw", workers=1)
    assert (tmp_path / "raw/phonemes.txt").read_text().split() == ["axr", "h#", "kcl"]
    raw = open_raw(tmp_path / "raw")
    _, labels = raw.partitions[0].read(0)
    assert raw.phonemes.symbols == ("axr", "h#", "kcl") and labels[0] == 1 and labels[25] == 0 and labels[45] == 2


def test_speakers_are_the_folders_that_hold_the_files(tmp_path):
    for name in ("t/DR1/FCJF0/SA1.wav", "t/DR1/MDAB0/SA1.wav", "t/103/1240/103-1240-0007.flac"):
        write_audio(tmp_path, name=name)
    (partition,) = open_raw(tmp_path).partitions
    assert partition.utterance_ids == ["103-1240-0007", "FCJF0-DR1-SA1", "MDAB0-DR1-SA1"]
    assert partition.speakers == ["103", "FCJF0", "MDAB0"]


def test_a_changed_file_behind_a_link_is_seen(tmp_path):
    write_audio(tmp_path / "store", name="t/u.wav")
    (tmp_path / "audio/t").mkdir(parents=True)
    os.symlink(tmp_path / "store/t/u.wav", tmp_path / "audio/t/u.wav")
    before = open_raw(tmp_path / "audio").partitions[0]
    os.utime(tmp_path / "store/t/u.wav", ns=(0, 0))
    after = open_raw(tmp_path / "audio").partitions[0]
    assert before.stamp == after.stamp and before.written != after.written


def test_a_project_folder_is_not_packed_as_the_beep_in_it(tmp_path):
    write_hw1p2(tmp_path / "data", "train", {"a-0-0": (np.ones((5, 2), np.float32), np.zeros(5, int))})
    write_audio(tmp_path, name="assets/beep.wav")
    with pytest.raises(CorpusNotFound, match="did you mean .*data"):
        open_raw(tmp_path)
    write_audio(tmp_path, name="deep/1/2/3/4/5/6/u.wav")
    assert [p.name for p in open_raw(tmp_path, "audio").partitions] == ["assets"]


def test_bad_files_are_named_and_leave_nothing_behind(tmp_path):
    audio = tmp_path / "audio"
    write_audio(audio)
    cases = {
        "stereo": {"audio": np.zeros((8000, 2))},
        "short": {"seconds": 0.01, "phones": [(0, 0.01, "sil")]},
        "shorter-than-said": {"seconds": 0.4},
        "overlap": {"phones": [(0, 0.5, "AH0"), (0.3, 0.9, "L")], "suffix": ".phn"},
        "backwards": {"phones": [(0.5, 0.1, "AH0")], "suffix": ".phn"},
    }
    for name, how in cases.items():
        file = write_audio(audio, name=f"train/s/{name}.wav", **how)
        with pytest.raises(RawDataError, match=name):
            extract(audio, tmp_path / "raw", workers=1)
        assert not list(tmp_path.glob("raw*"))
        report = extract(audio, tmp_path / "raw", workers=1, skip_bad=True)
        assert len(report.left_out) == 1 and report.partitions["train"][0] == 1
        for part in (tmp_path / "raw").rglob("*.npy"):
            part.unlink()
        shutil.rmtree(tmp_path / "raw")
        for part in file.parent.iterdir():
            part.unlink()
    write_audio(audio, suffix="", name="train/s/alone.wav")
    with pytest.raises(RawDataError, match="alone.wav: no alignment"):
        extract(audio, tmp_path / "raw")
    with pytest.raises(CorpusNotFound):
        extract(tmp_path, tmp_path / "raw2") if not (tmp_path / "audio").exists() else extract(
            tmp_path / "audio/train/spk1", tmp_path / "raw2"
        )


@pytest.mark.parametrize(
    "wrong",
    [{"coefficients": 0}, {"coefficients": 41}, {"rate_hz": 100}, {"rate_hz": 22050}, {"frame_shift_ms": 0}],
)
def test_an_impossible_front_end_is_refused(wrong):
    with pytest.raises(SpecError):
        FrontEnd(**wrong)


@pytest.mark.parametrize("rates", [(22050, 16000), (44100, 16000), (48000, 16000), (8000, 16000), (11025, 16000)])
def test_resampling_keeps_tones_below_the_cutoff_and_removes_those_above(rates):
    there, here = rates
    time, wanted = np.arange(there) / there, np.arange(here) / here
    middle = slice(here // 10, -here // 10)
    for tone in (100.0, 1234.5, 0.42 * min(rates)):
        ours = resample(np.sin(2 * np.pi * tone * time), there, here)
        assert len(ours) == here
        np.testing.assert_allclose(ours[middle], np.sin(2 * np.pi * tone * wanted)[middle], atol=2e-4)
    if there > here:
        alias = resample(np.sin(2 * np.pi * 0.53 * here * time), there, here)
        assert np.abs(alias[middle]).max() < 1e-4


def fuzz(tmp_path, seeds):
    from tests.phonedata.raw.test_layouts import damage

    for seed in seeds:
        choice = random.Random(seed)
        root = tmp_path / str(seed)
        write_audio(root, choice.choice([".TextGrid", ".phn", ".lab"]), choice.choice([8000, 16000]))
        damage(choice.choice(sorted(f for f in root.rglob("*") if f.is_file())), choice)
        try:
            raw = open_raw(root)
            features, labels = raw.partitions[0].read(0)
        except PhonedataError as error:
            assert "\n" not in str(error), seed
            continue
        assert len(features) == len(labels) and labels.max() < len(raw.phonemes), seed


def test_damaged_audio_and_alignments_end_in_our_own_error(tmp_path):
    fuzz(tmp_path, range(50))


@pytest.mark.long
def test_damaged_audio_and_alignments_end_in_our_own_error_3_000_times(tmp_path):
    fuzz(tmp_path, range(1000, 4000))

"""Audio and alignments: the label of a frame is the phone that covers its centre, whatever the alignment's format."""

import concurrent.futures.process
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from phonedata import ARPABET, AlignmentOptions, CorpusExists, PackedCorpus, RawDataError, SpecError, extract, pack
from phonedata.errors import CorpusNotFound, PhonedataError
from phonedata.raw.alignments import read_alignment
from phonedata.raw.frontend import FrontEnd, resample
from phonedata.raw.open import open_raw
from tests.conftest import write_hw1p2

pytest.importorskip("kaldi_native_fbank", reason="the extra [audio] is not installed")
pytest.importorskip("soxr", reason="the extra [audio] is not installed")
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
    write_audio(tmp_path / "audio", name="train/spk2/utt1.flac", seconds=0.5, phones=PHONES[:4])
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
        write_audio(tmp_path / "audio", name=f"train/s{speaker}/u.wav", seconds=0.9 + speaker / 25)
    for workers in (1, 2):
        extract(tmp_path / "audio", tmp_path / f"raw{workers}", workers=workers)
    files = sorted(f.relative_to(tmp_path / "raw1") for f in (tmp_path / "raw1").rglob("*") if f.is_file())
    assert len(files) == 7
    for file in files:
        assert (tmp_path / "raw1" / file).read_bytes() == (tmp_path / "raw2" / file).read_bytes(), file


@pytest.mark.parametrize("system", ["full", "read-only", "without"])
def test_without_semaphores_one_process_does_it_all_and_says_so(tmp_path, monkeypatch, system):
    """They lie in /dev/shm: containers have it full or read-only; some systems' Python knows none."""
    import _multiprocessing
    import multiprocessing.synchronize as synchronize

    make_audio(tmp_path / "audio", 3)
    extract(tmp_path / "audio", tmp_path / "usual", workers=1)

    def refused(*arguments):
        number = errno.ENOSPC if system == "full" else errno.EROFS
        raise OSError(number, os.strerror(number))

    # What executors of processes have found out they keep, and later tests would be told of it.
    for name in ("_system_limits_checked", "_system_limited"):
        monkeypatch.setattr(concurrent.futures.process, name, getattr(concurrent.futures.process, name))
    if system == "without":
        monkeypatch.setitem(sys.modules, synchronize.__name__, None)
    else:
        monkeypatch.setattr(_multiprocessing, "SemLock", refused)
    report = extract(tmp_path / "audio", tmp_path / "raw", workers=3)
    assert [note for note in report.notes if note.startswith("one process did it all: this system gives no semaphores")]
    assert all_bytes(tmp_path / "raw") == all_bytes(tmp_path / "usual")
    pack(tmp_path / "audio", tmp_path / "packed", workers=3)


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
    if workers == 1:  # who kept it is all the same to another front end
        shutil.rmtree(tmp_path / "raw")
        begin()
        # Another front end is another result: nothing of the first try may be in it.
        report = extract(tmp_path / "audio", tmp_path / "raw", workers=1, frontend=FrontEnd(coefficients=13))
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
    assert 'a script must make it under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


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
    assert [p.name for p in open_raw(tmp_path, "audio").partitions] == ["assets", "deep"]


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
        (left_out,) = json.loads(json.dumps(report.to_dict()))["left_out"]
        assert name in left_out["message"]
        for part in (tmp_path / "raw").rglob("*.npy"):
            part.unlink()
        shutil.rmtree(tmp_path / "raw")
        for part in file.parent.iterdir():
            part.unlink()
    write_audio(audio, suffix="", name="train/s/alone.wav")
    with pytest.raises(RawDataError, match="alone.wav: no alignment"):
        extract(audio, tmp_path / "raw")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CorpusNotFound, match="no audio found"):
        extract(tmp_path / "empty", tmp_path / "raw2")


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
        np.testing.assert_allclose(ours[middle], np.sin(2 * np.pi * tone * wanted)[middle], atol=1e-3)
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
            if not raw.partitions[0].utterance_ids:
                assert raw.partitions[0].problems and "\n" not in raw.partitions[0].problems[0].message
                continue
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


def read_labels(root, **options):
    """Symbols of every frame of the only utterance, as an alignment of the audio in `root` gives them."""
    raw = open_raw(root, "audio", AlignmentOptions(**options))
    (partition,) = raw.partitions
    if partition.problems:
        raise RawDataError(partition.problems[0].message)
    return [raw.phonemes.symbols[c] for c in partition.read(0)[1]]


@pytest.mark.parametrize("unit", [8000, 11025, 16000, 1000, 1])
def test_times_in_another_unit_are_refused_with_the_unit_that_fits(tmp_path, unit):
    file = write_audio(tmp_path, None, 48000, seconds=3)
    text = "".join(f"{a * unit} {b * unit} {s}\n" for a, b, s in [(0, 1, "sil"), (1, 2, "aa"), (2, 3, "sil")])
    file.with_suffix(".phn").write_text(text)
    with pytest.raises(RawDataError, match=rf"utt1.phn: nothing labels \d+% .*alignment_unit={unit}\b"):
        read_labels(tmp_path)
    assert read_labels(tmp_path, alignment_unit=unit).count("AA") == 100


def test_what_no_interval_covers_is_limited_counted_and_said(tmp_path):
    write_audio(tmp_path, seconds=0.95)
    assert open_raw(tmp_path).labelling == {"train": (93, 4, 0, 0, 0)}
    report = pack(tmp_path, tmp_path / "packed")
    assert re.search(r"\ntrain +4 of 93 +0 utterances +0 frames +0 utterances\n", str(report))
    assert report.to_dict()["labelling"]["train"]["uncovered"] == 4
    for seconds, phones in ((1.2, PHONES), (13.0, [(0, 11.9, "AA")]), (1.0, []), (1.0, [(0, 1, "")])):
        write_audio(tmp_path, None, seconds=seconds)
        write_grid(tmp_path / "train/spk1/utt1.TextGrid", [("phones", phones)])
        with pytest.raises(RawDataError, match=r"nothing labels|has no phone"):
            read_labels(tmp_path)
    write_grid(tmp_path / "train/spk1/utt1.TextGrid", [("phones", [(0, 1, "sil")])])
    assert set(read_labels(tmp_path)) == {"[SIL]"}


def write_grid(file, tiers):
    """A TextGrid in Praat's short format, in UTF-16 as Praat writes what is not ASCII."""
    lines = ['"ooTextFile"', '"TextGrid"', 0, 1, "<exists>", len(tiers)]
    for name, phones in tiers:
        lines += ['"IntervalTier"', f'"{name}"', 0, 1, len(phones)]
        lines += [value for a, b, s in phones for value in (a, b, f'"{s}"')]
    file.write_text("\n".join(map(str, lines)) + "\n", encoding="utf-16")


@pytest.mark.parametrize("unknown", ["spn", "UNK", "<oov>"])
def test_unknown_words_are_speech_of_their_own_or_left_out(tmp_path, unknown):
    file = write_audio(tmp_path, seconds=1)
    write_grid(file.with_suffix(".TextGrid"), [("phones", [(0, 0.2, ""), (0.2, 0.9, unknown), (0.9, 1, "sp")])])
    labels = read_labels(tmp_path)
    assert labels.count(unknown) == 70 and labels.count("[SIL]") == 28
    assert open_raw(tmp_path).labelling["train"].unknown == 70
    with pytest.raises(RawDataError, match="all 1 utterances of train .* have unknown words, which leaves none"):
        open_raw(tmp_path, "audio", AlignmentOptions(unknown="skip"))
    write_audio(tmp_path, name="train/spk1/utt2.wav")
    raw = open_raw(tmp_path, "audio", AlignmentOptions(unknown="skip"))
    assert raw.phonemes == ARPABET and raw.partitions[0].utterance_ids == ["spk1-0-utt2"]
    assert raw.labelling["train"].skipped == 1 and not raw.partitions[0].problems


def test_a_set_without_silence_gets_one_and_pauses_of_all_names_are_it(tmp_path):
    file = write_audio(tmp_path, None, seconds=1)
    phones = [(0, 0.2, ""), (0.2, 0.5, "k\u02b0"), (0.5, 0.7, "silB"), (0.7, 0.9, "\u00e6"), (0.9, 1, "pau")]
    write_grid(file.with_suffix(".TextGrid"), [("words", []), ("phones", phones)])
    assert open_raw(tmp_path).phonemes.symbols == ("[SIL]", "k\u02b0", "\u00e6")
    assert read_labels(tmp_path).count("[SIL]") == 19 + 20 + 9


LAB = {
    "HTS": "{a} {b} x^x-aa+b=b/A:1\n{b} {c} x^aa-b+sil=x/A:2\n",
    "triphones": "{a} {b} aa+b\n{b} {b} aa-b+sil\n{b} {c} aa-b\n",
    "states": "{a} {a} s2 -1.5 aa -3.0\n{a} {b} s3 -1.5\n{b} {c} s2 -1.5 b -3.0\n",
    "byte-order mark": "\ufeff{a} {b} aa\n{b} {c} b\n",
}


@pytest.mark.parametrize("kind", LAB)
@pytest.mark.parametrize("times", [("0", "5000000", "10000000"), ("0.0", "0.5", "1.0")])
def test_the_phone_is_taken_out_of_what_htk_tools_write(tmp_path, kind, times):
    file = write_audio(tmp_path, None, seconds=1)
    file.with_suffix(".lab").write_text(LAB[kind].format(**dict(zip("abc", times))), encoding="utf-8")
    labels = read_labels(tmp_path)
    assert labels == ["AA"] * 49 + ["B"] * 49


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("THE CAT SAT ON\n", "holds text without times .*transcripts that MFA reads"),
        ("utt1 1 0.00 0.50 aa\nutt1 1 0.5 0.5 b\n", "is a CTM file"),
        ("utt1 4 1 1 16 15 15 18\n", "transition ids"),
        ('#!MLF!#\n"*/utt1.lab"\n0 10000000 aa\n.\n', "master label file"),
        ("0 10000000 s2 -1.0\n", "HVite's states"),
    ],
)
def test_another_format_is_refused_by_its_name(tmp_path, text, named):
    file = write_audio(tmp_path, None, seconds=1)
    file.with_suffix(".lab").write_text(text)
    with pytest.raises(RawDataError, match=rf"utt1.lab: .*{named}") as caught:
        read_labels(tmp_path)
    assert str(caught.value).count("utt1.lab") == 1 or "MLF" in str(caught.value)


def test_a_stray_phone_in_a_known_set_is_named_with_its_count_and_file(tmp_path):
    write_audio(tmp_path, phones=[(a / 10, (a + 1) / 10, "AH0" if a % 2 else "K") for a in range(9)])
    file = write_audio(tmp_path, phones=[(0, 0.45, "AA"), (0.45, 0.9, "XX")], name="train/spk1/stray.wav")
    raw = open_raw(tmp_path)
    assert raw.phonemes == ARPABET and raw.partitions[0].utterance_ids == ["spk1-0-utt1"]
    (problem,) = raw.partitions[0].problems
    assert str(file.with_suffix(".TextGrid")) in problem.message and "'XX' 1 times" in problem.message


@pytest.mark.parametrize("name", ["MAU", "PhonAlign", "spk - phones", "phones"])
def test_the_tier_of_phones_is_found_or_named(tmp_path, name):
    file = write_audio(tmp_path, None, seconds=1).with_suffix(".TextGrid")
    phones = [(0, 0.505, "AA"), (0.5, 0.5, "B"), (0.5, 1, "B")]  # an overlap of rounding, an interval of no length
    write_grid(
        file, [("ORT-MAU", [(0, 1, "word")]), ("ORT-MAU", [(0, 1, "more")]), (name, phones), (name, [(0, 1, "")])]
    )
    assert read_labels(tmp_path) == ["AA"] * 49 + ["B"] * 49
    write_grid(file, [(name, [(0, 1, "K")]), (name, phones)])
    with pytest.raises(RawDataError, match="2 tiers of phones .*tier="):
        read_labels(tmp_path)
    assert read_labels(tmp_path, tier="2") == ["AA"] * 49 + ["B"] * 49


TREES = {
    "Kaggle's TIMIT": ("TRAIN/DR1/S1/SA1.WAV.wav", "TRAIN/DR1/S1/SA1.PHN"),
    "wav and lab": ("wav/arctic_a0001.wav", "lab/arctic_a0001.lab"),
    "wav and lab below": ("train/wav/s/a.wav", "train/lab/s/a.lab"),
}


@pytest.mark.parametrize("tree", TREES)
def test_usual_trees_pair(tmp_path, tree):
    audio, alignment = TREES[tree]
    write_audio(tmp_path, None, name=audio)
    (tmp_path / alignment).parent.mkdir(parents=True, exist_ok=True)
    write_alignment(tmp_path / alignment, PHONES, 16000)
    if "Kaggle" in tree:
        shutil.copy(tmp_path / audio, tmp_path / audio.removesuffix(".wav"))
    assert read_labels(tmp_path) == label_truth(PHONES, 88)


def test_a_tree_of_alignments_pairs_by_id_and_never_across_speakers(tmp_path):
    for speaker, phones in (("a", PHONES), ("b", [(0, 0.9, "AA")])):
        write_audio(tmp_path / "audio", None, name=f"train/{speaker}/SA1.wav")
        (tmp_path / "grids" / speaker).mkdir(parents=True)
        write_alignment(tmp_path / "grids" / speaker / "SA1.TextGrid", phones, 16000)
    write_audio(tmp_path / "audio", None, name="train/c/SA1.wav")
    options = AlignmentOptions(alignments=str(tmp_path / "grids"))
    (partition,) = open_raw(tmp_path / "audio", "audio", options).partitions
    assert partition.utterance_ids == ["a-0-SA1", "b-0-SA1"] and len(partition.problems) == 1
    assert set(partition.read(1)[1]) == {ARPABET.symbols.index("AA")}


def test_a_tree_of_alignments_may_hold_what_they_were_made_of(tmp_path):
    write_audio(tmp_path / "audio", None, name="train/a/u1.wav")
    (tmp_path / "grids").mkdir()
    write_alignment(tmp_path / "grids/u1.TextGrid", PHONES, 16000)
    (tmp_path / "grids/u1.lab").write_text("HELLO\n")
    assert read_labels(tmp_path / "audio", alignments=str(tmp_path / "grids")) == label_truth(PHONES, 88)


def test_one_alignment_is_never_that_of_two_recordings(tmp_path):
    for partition, name in (("train", "x"), ("dev", "x"), ("train", "y")):
        write_audio(tmp_path / "audio", None, name=f"{partition}/s/{name}.wav")
        (tmp_path / "grids/s").mkdir(parents=True, exist_ok=True)
        write_alignment(tmp_path / "grids/s" / f"{name}.TextGrid", PHONES, 16000)
    raw = open_raw(tmp_path / "audio", "audio", AlignmentOptions(alignments=str(tmp_path / "grids")))
    assert [p.labelled for p in raw.partitions] == [False, True]
    assert raw.partitions[1].utterance_ids == ["s-0-y"]
    assert any("several recordings have their name and folder" in note for note in raw.notes)


def test_a_partition_without_labels_may_stand_beside_a_phonemes_txt(tmp_path):
    write_audio(tmp_path)
    write_audio(tmp_path, None, name="test/s/t.wav")
    (tmp_path / "phonemes.txt").write_text("\n".join(["sil", *ARPABET.symbols[1:]]) + "\n")
    assert [len(p.utterance_ids) for p in open_raw(tmp_path).partitions] == [1, 1]


def test_fbank_deltas_and_c0_last_are_what_they_say(tmp_path):
    waveform = np.random.default_rng(1).normal(0, 1000, 16000).astype(np.float32)
    first, last = (FrontEnd(coefficients=13, c0=c0).compute(waveform) for c0 in ("first", "last"))
    np.testing.assert_array_equal(np.roll(first, -1, axis=1), last)
    assert FrontEnd(features="fbank", mel_bins=23).compute(waveform).shape == (98, 23)
    three = FrontEnd(coefficients=13, deltas=2).compute(waveform)
    t = np.clip(np.arange(98)[:, None] + np.arange(-4, 5), 0, 97)
    slope = sum(n * (first[t[:, 4 + n]] - first[t[:, 4 - n]]) for n in (1, 2)) / 10
    np.testing.assert_allclose(three[:, 13:26], slope, rtol=1e-4, atol=1e-4)
    bend = sum(n * (slope[t[:, 4 + n]] - slope[t[:, 4 - n]]) for n in (1, 2)) / 10
    np.testing.assert_allclose(three[4:-4, 26:], bend[4:-4], rtol=1e-4, atol=1e-4)
    with pytest.raises(SpecError, match="settings of mfcc"):
        FrontEnd(features="fbank", coefficients=13)


def test_stereo_is_named_by_our_own_sentence_alone(tmp_path):
    write_audio(tmp_path, audio=np.zeros((14400, 2)))
    with pytest.raises(RawDataError, match=r"utt1.wav: 2 channels, wanted one; mix them down") as caught:
        read_labels(tmp_path)
    assert "libsndfile" not in str(caught.value)


def write_some(root, *names, suffix=".TextGrid"):
    """Recordings of 0.9 s under `root`, each with its alignment beside it unless `suffix` is None."""
    for name in names:
        write_audio(root, suffix, name=name)


def move(file, folder):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.move(file, folder / file.name)


def test_second_copies_are_refused_by_name(tmp_path):
    write_some(tmp_path, "train/s/a.wav", "train/s/a (1).wav", "train/s/b.wav", "train/s/b copy.wav")
    (partition,) = open_raw(tmp_path).partitions
    assert partition.utterance_ids == ["s-0-a", "s-0-b"]
    assert [p.message.partition(": ")[2] for p in partition.problems] == [
        "is a second copy of s/a by its name; remove it",
        "is a second copy of s/b by its name; remove it",
    ]


def test_what_is_found_and_not_read_is_named_with_its_reason(tmp_path):
    write_some(tmp_path, "train/s/a.wav", "train/" + "deep/" * 9 + "b.wav")
    write_some(tmp_path, "train/orig/a.wav", "train/wav/s/c.wav", "loose.wav")
    (tmp_path / "train/s/x.mp3").write_bytes(b"")
    (tmp_path / "train/s/x.phones").write_bytes(b"")
    (tmp_path / "frontend.toml").write_text("")
    os.symlink(tmp_path / "train/s", tmp_path / "train/t")
    raw = open_raw(tmp_path)
    assert raw.partitions[0].utterance_ids == ["s-0-a", "s-0-c"]
    notes = "\n".join(raw.notes)
    for said in (
        "1 folders lie more than 8 below",
        "train/orig is not read",
        "train/t is not read, as it is the folder",
        "1 audio files lie beside the partitions",
        "x.mp3: audio is read from .wav and .flac",
        "x.phones: alignments are read from",
        "frontend.toml is not read",
    ):
        assert said in notes


def test_audio_of_other_formats_alone_is_named(tmp_path):
    (tmp_path / "train/s").mkdir(parents=True)
    (tmp_path / "train/s/a.M4A").write_bytes(b"")
    with pytest.raises(CorpusNotFound, match=r"but of .*train/s/a.M4A: audio is read from .wav and .flac; convert"):
        open_raw(tmp_path)


def test_a_partition_of_which_nothing_is_left_says_why(tmp_path):
    write_audio(tmp_path, phones=[(0, 0.9, "")])
    with pytest.raises(RawDataError, match="train has no utterance to pack; .*; first: .*utt1.TextGrid: has no phone"):
        pack(tmp_path, tmp_path / "packed", skip_bad=True)


def test_audio_in_the_folder_itself_is_one_partition(tmp_path):
    write_some(tmp_path / "speech", "a.wav", "b.wav")
    (partition,) = open_raw(tmp_path / "speech").partitions
    assert (partition.name, partition.utterance_ids) == ("speech", ["a", "b"])


@pytest.mark.parametrize("place", ["train/annotation/s", "train/by hand", "mfa_out", "mfa_out/train/s"])
def test_alignments_elsewhere_are_paired_by_a_name_that_only_one_has(tmp_path, place):
    write_some(tmp_path, "train/s/a.wav", "train/s/b.wav")
    for name in "ab":
        move(tmp_path / f"train/s/{name}.TextGrid", tmp_path / place)
    raw = open_raw(tmp_path)
    assert raw.partitions[0].utterance_ids == ["s-0-a", "s-0-b"] and raw.partitions[0].labelled
    assert any("2 alignments lie elsewhere and are paired by name" in note for note in raw.notes)


def test_a_recording_never_gets_the_alignment_of_another_of_its_name(tmp_path):
    """One speaker's alignment is missing, the other's audio: what is left of both has the same name."""
    write_some(tmp_path, "train/s/a.wav", "train/t/SA1.wav", "train/u/SA1.wav")
    (tmp_path / "train/t/SA1.TextGrid").unlink()
    (tmp_path / "train/u/SA1.wav").unlink()
    (partition,) = open_raw(tmp_path).partitions
    assert partition.utterance_ids == ["s-0-a"]
    assert [p.utterance_id for p in partition.problems] == ["t-0-SA1", "u-0-SA1"]


def test_of_two_alignments_of_one_format_none_is_taken(tmp_path):
    write_some(tmp_path, "train/wav/a.wav")
    for folder in ("lab", "labels"):
        (tmp_path / "train" / folder).mkdir()
        shutil.copy(tmp_path / "train/wav/a.TextGrid", tmp_path / "train" / folder)
    (tmp_path / "train/wav/a.TextGrid").unlink()
    (problem,) = open_raw(tmp_path).partitions[0].problems
    assert "has two alignments" in problem.message


@pytest.mark.parametrize("given", [".", "LibriSpeech/train-clean-100"])
def test_a_folder_above_or_below_the_partitions_is_refused_with_the_one_that_is_meant(tmp_path, given):
    write_some(tmp_path, "LibriSpeech/train-clean-100/103/1/103-1-0.flac", "LibriSpeech/dev-clean/84/1/84-1-0.flac")
    with pytest.raises(RawDataError, match=rf"did you mean {tmp_path}/LibriSpeech\?"):
        open_raw(tmp_path / given)
    assert [p.name for p in open_raw(tmp_path / "LibriSpeech").partitions] == ["dev-clean", "train-clean-100"]


def test_a_partition_that_the_tree_of_alignments_lacks_has_no_labels(tmp_path):
    write_some(tmp_path / "audio", "train/s/a.wav")
    write_some(tmp_path / "audio", "test/s/b.wav", suffix=None)
    move(tmp_path / "audio/train/s/a.TextGrid", tmp_path / "grids")
    options = AlignmentOptions(alignments=str(tmp_path / "grids"))
    assert [p.labelled for p in open_raw(tmp_path / "audio", "audio", options).partitions] == [False, True]
    (tmp_path / "grids/a.TextGrid").rename(tmp_path / "grids/x.TextGrid")
    with pytest.raises(RawDataError, match="none of its 1 alignments has the name of an audio file"):
        open_raw(tmp_path / "audio", "audio", options)


def test_an_option_without_effect_is_refused(tmp_path):
    write_some(tmp_path, "train/s/a.wav", suffix=".phn")
    with pytest.raises(SpecError, match="tier='phones' is for TextGrids, but no alignment is one"):
        open_raw(tmp_path, "audio", AlignmentOptions(tier="phones"))
    (tmp_path / "train/s/a.phn").unlink()
    with pytest.raises(SpecError, match="unknown='skip' is for alignments, but there are none"):
        open_raw(tmp_path, "audio", AlignmentOptions(unknown="skip"))


def test_phones_that_phonemes_txt_lacks_are_listed_with_counts(tmp_path):
    write_audio(tmp_path, phones=[(0, 0.3, "AA"), (0.3, 0.6, "XX"), (0.6, 0.9, "spn")])
    (tmp_path / "phonemes.txt").write_text("sil\nAA\n")
    (problem,) = open_raw(tmp_path).partitions[0].problems
    said = "phone 'XX' is not among the 2 of phonemes.txt (in all: 'XX' 1 times, 'spn' 1 times)"
    assert said in problem.message and "unknown='skip'" in problem.message
    (tmp_path / "phonemes.txt").write_text("AA\nXX\nspn\n")
    write_audio(tmp_path, phones=[(0, 0.3, "AA"), (0.3, 0.9, "pau")])
    (problem,) = open_raw(tmp_path).partitions[0].problems
    assert "it is a pause: add a line sil to phonemes.txt" in problem.message


def test_words_in_place_of_phones_are_refused(tmp_path):
    for n in range(4):
        rows = [(k / 100, (k + 1) / 100, f"word{90 * n + k}") for k in range(90)]
        write_audio(tmp_path, phones=rows, name=f"train/s/{n}.wav")
    with pytest.raises(RawDataError, match="has 35[0-9] different phones, .*; are they words"):
        open_raw(tmp_path)


def test_kaldi_names_of_positions_in_a_word_are_no_phones_of_their_own(tmp_path):
    write_audio(tmp_path, phones=[(0, 0.3, "SIL_S"), (0.3, 0.6, "AA1_B"), (0.6, 0.9, "SPN_S")])
    assert open_raw(tmp_path).phonemes.symbols == (*ARPABET.symbols, "SPN_S")
    assert read_labels(tmp_path).count("[SIL]") == 29

"""A layout that another package brings: docs/CODE.md's own example, installed and packed with by name and by itself."""

import multiprocessing
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from phonedata import ARPABET, CorpusNotFound, PackedCorpus, RawCorpus, RawDataError, SpecError, pack
from phonedata.raw import open as open_module
from tests.conftest import place_features, place_label

CODE = (Path(__file__).parents[3] / "docs/CODE.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(# csvlayout\.py\n.*?)```", CODE, re.DOTALL)[1]


@pytest.fixture
def raw(tmp_path):
    for partition, numbers in (("train", (0, 1, 2)), ("dev", (3,))):
        (tmp_path / "raw" / partition).mkdir(parents=True)
        for number in numbers:
            rows = zip(place_label(number, 9).tolist(), place_features(number, 9, 3).tolist())
            lines = [f"{ARPABET.symbols[label]},{','.join(map(str, row))}\n" for label, row in rows]
            (tmp_path / "raw" / partition / f"{number}.csv").write_text("".join(lines))
    return tmp_path / "raw"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package of one module, offline: what pip would write, in a folder that Python looks into."""

    def installed(code=EXAMPLE, name="csv"):
        site, module = tmp_path / "site", f"{name}layout"
        (site / f"{module}-1.0.dist-info").mkdir(parents=True)
        (site / f"{module}.py").write_text(code, encoding="utf-8")
        (site / f"{module}-1.0.dist-info/METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        points = f"[phonedata.layouts]\n{name} = {module}\n"
        (site / f"{module}-1.0.dist-info/entry_points.txt").write_text(points)
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site

    return installed


def phonedata(*words, site, cwd):
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", "-m", "phonedata", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


@pytest.mark.parametrize("options", [{"layout": "csv"}, {}, None])
def test_an_installed_layout_is_packed_with_by_name_and_by_itself(raw, install, tmp_path, options):
    if options is None:
        words = ["pack", raw, "packed", "--workers", "3", "--cmvn", "train", "--train-partition", "train"]
        done = phonedata(*words, site=install(), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        install()
        pack(raw, tmp_path / "packed", **options)
    corpus = PackedCorpus(tmp_path / "packed")
    assert corpus.attributes["layout"] == "csv" and corpus["train"].utterance_ids == ["0", "1", "2"]
    row = corpus["dev"].utterance_start_row[0]
    assert corpus["dev"].labels[row : row + 9].tolist() == place_label(3, 9).tolist()
    corpus.verify()


def test_workers_elsewhere_read_an_installed_layout_that_says_which_files_it_reads(raw, install, tmp_path):
    install()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        report = pack(raw, tmp_path / "packed", executor=executor)
    assert report.digest == pack(raw, tmp_path / "usual").digest
    install(EXAMPLE.replace("def files_of(", "def paths_of("), "bare")
    with ThreadPoolExecutor(1) as executor, pytest.raises(SpecError, match="does not say which files it reads"):
        pack(raw, tmp_path / "other", layout="bare", executor=executor)


def test_without_the_package_its_name_is_unknown_and_its_folder_not_found(raw, tmp_path):
    with pytest.raises(SpecError, match="layout 'csv' is unknown; layouts are hw1p2, libriphone, kaldi, audio"):
        pack(raw, tmp_path / "packed", layout="csv")
    with pytest.raises(CorpusNotFound, match="no known layout found"):
        pack(raw, tmp_path / "packed")


def test_problems_and_bad_files_of_an_installed_layout_are_those_of_any(raw, install, tmp_path):
    install()
    (raw / "train/empty.csv").write_text("")
    with pytest.raises(RawDataError, match=r"train/empty\.csv: is empty; remove it"):
        pack(raw, tmp_path / "packed")
    (raw / "train/1.csv").write_text("QQ,1,2,3\n")
    report = pack(raw, tmp_path / "packed", skip_bad=True)
    assert [one.reason for one in report.left_out] == [
        "train/1.csv: 'QQ'; wanted a phoneme and numbers in each line",
        "train/empty.csv: is empty; remove it",
    ]


def test_a_folder_too_high_is_named_for_an_installed_layout_too(raw, install, tmp_path):
    install()
    (tmp_path / "above").mkdir()
    raw.rename(tmp_path / "above/raw")
    with pytest.raises(CorpusNotFound, match=r"csv: PARTITION/ID\.csv; did you mean .*above/raw\?"):
        pack(tmp_path / "above", tmp_path / "packed")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_of_this_name", "layout 'csv' of csvlayout cannot be imported .*nothing_of_this_name"),
        ("LOOKS_FOR = 'x'", "layout 'csv' of csvlayout: csvlayout has no detect, open_layout; mend or uninstall it"),
        (
            EXAMPLE.replace("return RawCorpus(", "return dict if 1 else RawCorpus("),
            "its open_layout returns type, wanted",
        ),
    ],
)
def test_a_broken_package_is_named_and_stands_in_nobodys_way(raw, install, tmp_path, tiny_raw, code, message):
    install(code)
    with pytest.raises(SpecError, match=message):
        pack(raw, tmp_path / "packed", layout="csv")
    pack(tiny_raw, tmp_path / "packed")


LIES = {
    "labels, wider": ("ARPABET.label_dtype)", "np.int64)", "labels of type int64, wanted uint8 class indices"),
    "labels, beyond": (
        "labels = np.array([",
        "labels = 40 + 0 * np.array([",
        r"3\.csv: class 40 at frame 0, wanted 0\.\.39",
    ),
    "labels, padding": (
        "labels = np.array([",
        "labels = 255 | np.array([",
        r"3\.csv: class 255 at frame 0, wanted 0\.\.39",
    ),
    "labels, fewer": (
        "for line in lines], ARPABET",
        "for line in lines[1:]], ARPABET",
        "9 feature frames but 8 labels",
    ),
    "features": ("np.float32), labels", "np.int32), labels", "features of shape .* type <i4, wanted"),
    "ids": (
        "[file.stem for file in self.files]",
        "['a/b' for file in self.files]",
        "utterance id 'a/b' cannot be used",
    ),
    "same ids": (
        "[file.stem for file in self.files]",
        "['abc' for file in self.files]",
        r"3 ids \(1 different\) and 3",
    ),
    "escape": ('"csv", tuple', '"c\\x1bsv", tuple', r"layout 'c\\x1bsv' has control characters"),
    "speakers": (
        "self.utterance_ids = self.speakers = [",
        "self.speakers = ['s']; self.utterance_ids = [",
        "and 1 speakers",
    ),
}


@pytest.mark.parametrize("kind", LIES)
def test_what_an_installed_layout_gives_is_checked(raw, install, tmp_path, kind):
    """Integers that wrapped to other classes would be labels that nobody gave."""
    old, new, message = LIES[kind]
    assert old in EXAMPLE
    code = EXAMPLE.replace(old, new)
    if kind == "features":
        code = code.replace("line[1:] for", "list(map(float, line[1:])) for")
    install(code)
    with pytest.raises(RawDataError, match=message):
        pack(raw, tmp_path / "packed", layout="csv")
    assert not (tmp_path / "packed").exists()


def test_a_name_of_ours_is_not_taken_over(install, tiny_raw, tmp_path):
    install("raise SystemExit('taken over')", name="hw1p2")
    assert pack(tiny_raw, tmp_path / "packed", layout="hw1p2").layout == "hw1p2"


def test_public_names_are_those_that_our_own_layouts_use(raw, install):
    install()
    corpus = open_module.open_raw(raw, "csv")
    assert isinstance(corpus, RawCorpus)
    partition = pickle.loads(pickle.dumps(corpus.partitions[0]))
    np.testing.assert_array_equal(partition.read(0)[0], place_features(3, 9, 3))

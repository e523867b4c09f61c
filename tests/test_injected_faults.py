"""Every system call of every command that writes may fail: one sentence with the file's name, nothing lost, nothing
half written, and what the sentence says to type works.

A shim in C, compiled here, fails the Nth call of a kind; `make test-long` tries every N of every kind.
"""

import importlib.util
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from phonedata import PackedCorpus, pack
from phonetrain.checkpoints import checkpoint, series
from phonetrain.runs.directory import Run
from tests.injected_faults import Faults
from tests.training import TINY, fit_tiny, numbers, tree, weights

KINDS = {
    "open": ("EIO", "EMFILE", "ENOMEM"),
    "read": ("EIO",),
    "stat": ("EIO", "ENOMEM"),
    "list": ("EIO", "EMFILE"),
    "mmap": ("ENODEV", "ENOMEM"),
    "close": ("EIO",),
    "unlink": ("EIO",),
    "write": ("ENOSPC", "EIO"),
    "sync": ("EIO", "ENOSPC"),
    "rename": ("EIO",),
}
AUDIO = importlib.util.find_spec("soundfile") and importlib.util.find_spec("kaldi_native_fbank")  # the extra [audio]
SETTINGS = [words for words in TINY if not words.startswith("epochs=")]


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here, so no system call can be made to fail")
    shim = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("fault_shim.c")
    made = subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-w", "-o", shim, source, "-ldl"], capture_output=True)
    if made.returncode:
        pytest.skip("the shim that makes system calls fail is for Linux with glibc")
    served = Faults(shim)
    yield served
    served.close()


class Scene:
    """A folder in which one command line is tried again and again, each time from the same state."""

    def __init__(self, faults: Faults, kept: Path, folder: Path, words: list[str]):
        self.faults, self.kept, self.folder, self.words = faults, kept, folder, words

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.kept, self.folder)

    def calls(self, kind: str) -> int:
        self.fresh()
        told = self.faults.run(self.words, kind, below=self.folder)
        assert told["code"] == 0, told["err"]
        return told["calls"]

    def check(self, kind: str, nth: int, error: str) -> dict:
        """One case: what it says, whether what it says to type works. Returns what was told."""
        self.fresh()
        told = self.faults.run(self.words, kind, nth, error, below=self.folder)
        case = f"{shlex.join(self.words[:2])}, {kind} {nth} {error} of {told['path']}: {told['code']}\n{told['err']}"
        assert told["code"] in (0, 1, 2), case
        if told["code"]:
            said = [line for line in told["err"].splitlines() if line.startswith(f"{self.words[0]}: ")]
            assert len(said) == 1 and str(self.folder) in said[0], case
            for command in re.findall(r"`(phone\w+ [^`]*)`", said[0]):
                again = self.faults.run([*shlex.split(command), *(["--quiet"] if "resume" in command else [])])
                assert again["code"] == 0, f"{case}\n{command}: {again['err']}"
        return told


@pytest.fixture(scope="module")
def kept(learnable_corpus, tmp_path_factory):
    """Raw folder, packed corpus and a run of one epoch, as no fault has touched them; and a run of two."""
    root = tmp_path_factory.mktemp("faults") / "kept"
    for name in ("raw", "packed"):
        shutil.copytree(learnable_corpus.path.parent / name, root / name)
    corpus = PackedCorpus(root / "packed")
    fit_tiny(corpus, root / "begun", "epochs=1", "schedule.on_extend=stretch")
    fit_tiny(corpus, root / "other", "epochs=1", "seed=1")
    from tests.phonetrain.results.test_transcribe import write_tones  # skips where nothing reads audio

    for name in ("train", "dev"):
        write_tones(root / "audio", name, 3)
    pack(root / "audio", root / "tones")
    fit_tiny(PackedCorpus(root / "tones"), root / "heard", "epochs=1", "batch_size=64", "augment.freq_mask=0")
    return root


@pytest.fixture(scope="module")
def scenes(faults, kept, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "scene"
    begun, packed = folder / "begun", folder / "packed"
    lines = {
        "pack": ["phonedata", "pack", folder / "raw", folder / "new"],
        "extract": ["phonedata", "extract", folder / "audio", folder / "extracted", "--workers", "1"],
        "fit": ["phonetrain", "fit", "default", "--corpus", packed, "--run", folder / "run", "--quiet", *SETTINGS,
                "epochs=1", "schedule.on_extend=stretch"],
        "resume": ["phonetrain", "resume", begun, "--corpus", packed, "epochs=2", "--quiet"],
        "evaluate": ["phonetrain", "evaluate", begun, "--corpus", packed],
        "predict": ["phonetrain", "predict", begun, "--corpus", packed, "--partition", "test-clean"],
        "export": ["phonetrain", "export", begun, "--corpus", packed],
        "report": ["phonetrain", "report", begun],
        "compare": ["phonetrain", "compare", begun, folder / "other", "--corpus", packed],
        "suspects": ["phonetrain", "suspects", begun, "--corpus", packed],
        "transcribe": ["phonetrain", "transcribe", *(folder / f"audio/dev/d{n}-1-{n}.wav" for n in range(2)),
                       "--run", folder / "heard", "--corpus", folder / "tones", "--as", "textgrid",
                       "--out", folder / "out"],
    }  # fmt: skip
    return {name: Scene(faults, kept, folder, list(map(str, words))) for name, words in lines.items()}


def assert_nothing_lost(scene: Scene, name: str, kind: str, kept: Path, whole: dict, told: dict) -> None:
    """What the command with a fault left, and what the same command, typed once more without one, comes to.

    told: by the one with a fault.
    """
    if name == "pack":
        digest = PackedCorpus(kept / "packed").digest
        assert told["code"] or PackedCorpus(scene.folder / "new").digest == digest, f"another corpus: {told['out']}"
        assert scene.faults.run([*scene.words, "--replace"])["code"] == 0
        assert PackedCorpus(scene.folder / "new").digest == digest
        return
    if name == "extract":
        if not (scene.folder / "extracted").exists():  # the same command does it, or goes on with it
            again = scene.faults.run(scene.words)
            assert again["code"] == 0, again["err"]
        assert tree(scene.folder / "extracted") == tree_of_whole(scene, name, whole)[1]
        return
    if name not in ("fit", "resume"):
        left = tree(scene.folder)
        untouched, files = tree_of_whole(scene, name, whole)
        if name == "report" and told["code"] == 0 and left != files:  # a page without what could not be read
            assert re.search("^warning: .* could not be (scored|drawn): ", told["err"], re.MULTILINE), told["err"]
            assert scene.faults.run(scene.words)["code"] == 0
            assert tree(scene.folder) == files, "typed once more, the page is not the whole one"
            return
        before = whole.setdefault("kept", tree(kept))
        changed = [path for path in left if left[path] not in (before.get(path), files.get(path))]
        assert not changed and left.keys() >= before.keys(), f"{changed} are neither old nor new"
        if told["code"] == 0 and told["err"] == untouched["err"]:
            assert told["out"] == untouched["out"], f"something else is answered, without a word:\n{told['out']}"
            assert left == files, "something else is written, without a word"
        return
    run = Run(scene.folder / ("run" if name == "fit" else "begun"))
    if not run.config_path.is_file() or not series.saved_steps(run):
        assert scene.faults.run(scene.words)["code"] == 0
    elif run.status != "finished" or len(run.metrics("epoch")) < (1 if name == "fit" else 2):
        more = [] if name == "fit" else ["epochs=2"]
        again = scene.faults.run(
            ["phonetrain", "resume", run.path, "--corpus", scene.folder / "packed", *more, "--quiet"]
        )
        assert again["code"] == 0, again["err"]
    for step in series.saved_steps(run):
        checkpoint.read(run.checkpoint_dir(step))
    if "an older checkpoint is used" in told["err"]:
        return  # from where a schedule that is stretched has other rates
    found = weights(run), numbers(run)
    if name not in whole:
        scene.fresh()
        assert scene.faults.run(scene.words)["code"] == 0
        whole[name] = weights(run), numbers(run)
    assert found[0] == whole[name][0], "other weights"
    assert found[1] == whole[name][1], "other numbers in its log"


def tree_of_whole(scene: Scene, name: str, whole: dict) -> tuple[dict, dict]:
    """What the command tells to which nothing happens, and the files that it leaves: for extract the extracted ones."""
    if name not in whole:
        scene.fresh()
        told = scene.faults.run(scene.words)
        assert told["code"] == 0, told["err"]
        whole[name] = told, tree(scene.folder / ("extracted" if name == "extract" else ""))
    return whole[name]


@pytest.fixture(scope="module")
def whole() -> dict:
    """What commands come to where nothing happens: weights and numbers of fit and resume, else words and files."""
    return {}


NAMES = ("pack", "fit", "resume", "evaluate", "predict", "export", "report", "compare", "suspects", "transcribe")
NAMES += ("extract",) if AUDIO else ()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "export"])
def test_any_failing_call_ends_in_one_sentence_whose_advice_works(scenes, kept, whole, name):
    chance, scene, fired = random.Random(name), scenes[name], 0
    for kind in chance.sample(sorted(KINDS), 2):
        if calls := scene.calls(kind):
            told = scene.check(kind, chance.randint(1, calls), chance.choice(KINDS[kind]))
            fired += bool(told["path"])
            assert_nothing_lost(scene, name, kind, kept, whole, told)
    assert fired


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_failing_call_ends_in_one_sentence_whose_advice_works(scenes, kept, whole, name, kind):
    scene, failed = scenes[name], []
    calls = scene.calls(kind)
    for nth in range(1, calls + 1):
        try:
            told = scene.check(kind, nth, KINDS[kind][nth % len(KINDS[kind])])
            assert_nothing_lost(scene, name, kind, kept, whole, told)
        except AssertionError as error:
            failed.append(str(error))
    print(f"{name}, {kind}: {calls} cases tried, {len(failed)} failed")
    assert not failed, f"{len(failed)} of {calls}:\n" + "\n".join(failed)

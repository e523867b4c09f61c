"""The command line: phonedata pack | extract | inspect | verify."""

import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from .errors import PhonedataError, SpecError
from .files import check_place, named_by_system, unreadable

app = App(
    name="phonedata",
    help="Pack per-utterance speech features into a corpus that trains at memory speed.",
)

_UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, marks that turn the direction of writing, and what a name in no known encoding is made of."""

Flag = Annotated[bool, Parameter(negative="")]
Json = Annotated[bool, Parameter("--json", negative="")]
Dask = Annotated[
    str | None,
    Parameter(
        help="Address of a dask scheduler whose workers do it, as tcp://host:8786, or local:N for N on this machine. "
        "They must see the same files under the same paths (docs/CLUSTER.md). Needs pip install 'phonedata[dask]'."
    ),
]


@Parameter(name="*")
@dataclass(frozen=True)
class Alignment:
    """How alignments of audio become labels: options of pack and of extract.

    Parameters
    ----------
    alignments
        Folder of a tree that holds the alignments of the audio, paired by id; by default they lie beside it.
    tier
        The TextGrids' tier of phones, by name or number; by default the one named phones, MAU or PhonAlign.
    alignment_unit
        How many units of the times in .phn and .lab are a second, e.g. 16000, 1000 for milliseconds, 1 for seconds; by
        default .phn counts samples of the audio, HTK's .lab 100 ns, and numbers with a decimal point seconds.
    unknown
        Unknown words (spn, unk, oov) are classes of their own, or their utterances are left out.
    max_uncovered
        Largest share of an utterance that no interval covers; by default 0.1, and no stretch above 1 s.
    """

    alignments: Path | None = None
    tier: str | None = None
    alignment_unit: float | None = None
    unknown: Literal["class", "skip"] = "class"
    max_uncovered: float | None = None


@app.command
def pack(
    raw: Path,
    packed: Path,
    /,
    *,
    layout: str | None = None,
    cmvn: Literal["utterance", "speaker", "train", "none"] = "utterance",
    train_partition: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    context: int = 50,
    skip_bad: Flag = False,
    replace: Flag = False,
    workers: int | None = None,
    dask: Dask = None,
    alignment: Alignment | None = None,
    classes: int | None = None,
    label_shift: float | None = None,
    split: str | None = None,
    phone_map: Annotated[str | None, Parameter("--map")] = None,
    skip: Path | None = None,
    json_output: Json = False,
) -> None:
    """Pack the raw folder RAW into the corpus PACKED, whole or not at all.

    Repeat an interrupted call and it continues where it stopped.

    Parameters
    ----------
    raw
        Folder of a known layout, e.g. RAW/train-clean-100/mfcc/ID.npy.
    packed
        The packed corpus to make.
    layout
        How the raw folder is laid out: hw1p2, libriphone, kaldi, audio, or a name that an installed package registers;
        found by itself when not given.
    cmvn
        Mean and variance normalisation; train takes its statistics from --train-partition.
    train_partition
        Where the statistics of --cmvn train come from: NAME, or "NAME + NAME" for several.
    dtype
        Type of the stored features.
    context
        Rows of zeros between utterances: the largest window side that training can ask for.
    skip_bad
        Leave out utterances that cannot be packed, and list them; in a partition without labels zeros keep their place,
        so that a submission's rows stay where they belong.
    replace
        Replace a packed corpus that is already there.
    workers
        Threads; by default one per processor that this process may use.
    classes
        Labels are the numbers 0..N-1, whichever of them occur; by default the largest that occurs is N-1.
    label_shift
        Milliseconds from one label to the next where features are closer, e.g. 20; each label is repeated.
    split
        Parts taken from the labelled partitions, as dev=0.1,test=0.1; each speaker is in one. The rest is for training.
    phone_map
        Fold symbols into classes: timit-48, timit-39 (Lee and Hon), or a file with lines `symbol class`; `symbol` alone
        leaves its frames out.
    skip
        A file with a line PARTITION/UTTERANCE for each that is left out, as `phonetrain suspects` writes it.
    json_output
        Print the report as JSON.
    """
    from .packing.executor import dask_executor
    from .packing.pack import pack as run
    from .progress import ProgressLine
    from .raw.audio import AlignmentOptions

    with dask_executor(dask) as executor, ProgressLine() as line:
        report = run(
            raw,
            packed,
            layout=layout,
            cmvn=cmvn,
            train_partition=train_partition,
            dtype=dtype,
            context=context,
            skip_bad=skip_bad,
            replace=replace,
            workers=workers,
            progress=line,
            executor=executor,
            alignment=None if alignment is None else AlignmentOptions(**asdict(alignment)),
            classes=classes,
            label_shift=label_shift,
            split=split,
            phone_map=phone_map,
            skip=skip,
        )
    _show(report.to_dict(), as_flags(str(report)), json_output)


def _show(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result, `text` for people or `result` as JSON; a full disk where it goes is one line."""
    try:
        print(_visible(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still buffered goes nowhere: the flush at exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise PhonedataError(f"the output could not be written ({error.strerror}); make room for it") from None


def _visible(text: str) -> str:
    """Text with its control characters, but for the ends of lines, spelt out as in JSON.

    A name, or a table of a front end, from foreign hands must not move the cursor, rename the window or reverse a line.
    """
    return _UNSEEN.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@app.command
def extract(
    audio: Path,
    raw: Path,
    /,
    *,
    features: Literal["mfcc", "fbank"] = "mfcc",
    coefficients: int | None = None,
    bins: int = 40,
    deltas: Literal[0, 1, 2] = 0,
    c0: Literal["first", "last"] = "first",
    rate: int = 16000,
    frame_length: float = 25.0,
    frame_shift: float = 10.0,
    low_hz: float = 20.0,
    high_hz: float | None = None,
    window: Literal["povey", "hamming", "hanning", "rectangular"] = "povey",
    preemphasis: float = 0.97,
    lifter: float = 22.0,
    alignment: Alignment | None = None,
    skip_bad: Flag = False,
    workers: int | None = None,
    dask: Dask = None,
    json_output: Json = False,
) -> None:
    """Compute features and frame labels of the folder AUDIO into the new raw folder RAW, ready to pack.

    AUDIO holds one folder a partition, with .wav or .flac files at any depth and beside each, except in a test
    partition, its phones: a TextGrid (MFA), TIMIT's .phn, or a .lab of Festival or HTK. Repeat an interrupted call and
    it continues where it stopped.

    Parameters
    ----------
    audio
        Folder of partitions, e.g. AUDIO/train/speaker/ID.wav with ID.TextGrid.
    raw
        The raw folder to make.
    features
        MFCC, or log mel energies (fbank).
    coefficients
        MFCC a frame; 28 by default.
    bins
        Mel bins.
    deltas
        How many derivatives follow the static coefficients.
    c0
        Whether MFCC's C0 is the first or the last coefficient; the course's features have it last.
    rate
        Sampling rate in Hz that audio is brought to.
    frame_length
        Milliseconds that a frame covers.
    frame_shift
        Milliseconds from one frame to the next.
    low_hz
        Lower end of the mel bins.
    high_hz
        Upper end of the mel bins; half of the rate by default.
    window
        The frames' window function.
    preemphasis
        Factor of the pre-emphasis, 0 for none.
    lifter
        Cepstral lifter of MFCC, 0 for none.
    skip_bad
        Leave out utterances that cannot be read, and list them.
    workers
        Processes; by default one per processor.
    json_output
        Print the report as JSON.
    """
    from .packing.executor import dask_executor
    from .packing.extract import extract as run
    from .progress import ProgressLine
    from .raw.audio import AlignmentOptions
    from .raw.frontend import FrontEnd

    frontend = FrontEnd(
        features=features,
        rate_hz=rate,
        frame_length_ms=frame_length,
        frame_shift_ms=frame_shift,
        mel_bins=bins,
        coefficients=coefficients,
        deltas=deltas,
        c0=c0,
        low_hz=low_hz,
        high_hz=high_hz,
        window=window,
        preemphasis=preemphasis,
        lifter=lifter,
    )
    with dask_executor(dask) as executor, ProgressLine() as line:
        report = run(
            audio,
            raw,
            frontend=frontend,
            alignment=None if alignment is None else AlignmentOptions(**asdict(alignment)),
            skip_bad=skip_bad,
            workers=workers,
            executor=executor,
            progress=line,
        )
    _show(report.to_dict(), as_flags(str(report)), json_output)


@app.command
def inspect(
    packed: Path,
    /,
    *,
    plot: Path | None = None,
    partition: str | None = None,
    utterance: str | None = None,
    json_output: Json = False,
) -> None:
    """Show what the corpus PACKED holds: partitions, hours, labels, lengths, coefficients.

    Parameters
    ----------
    packed
        A packed corpus.
    plot
        Draw one utterance with its phonemes along the axis into this file (.svg, .png, .pdf).
    partition
        The partition to draw from.
    utterance
        The id of the utterance to draw.
    json_output
        Print everything as JSON.
    """
    from .format.describe import inspect as run
    from .format.describe import plot_utterance

    found = run(packed)
    _show(found.to_dict(), str(found), json_output)
    if plot is not None:
        print(f"drawn: {plot_utterance(found.corpus, plot, partition, utterance)}", file=sys.stderr)


@app.command
def verify(packed: Path, /, *, json_output: Json = False) -> None:
    """Read every byte of the corpus PACKED against its digests.

    Parameters
    ----------
    packed
        A packed corpus.
    json_output
        Print the result as JSON.
    """
    from .format.corpus import PackedCorpus
    from .progress import ProgressLine

    corpus = PackedCorpus(packed)
    with ProgressLine() as line:
        size = corpus.verify(line)
    result = {"path": str(packed), "digest": corpus.digest, "bytes": size, "intact": True}
    _show(result, f"{packed}: intact, {size:,} bytes, {corpus.digest}", json_output)


def as_flags(message: str) -> str:
    """A message of the Python functions for the command line: `replace=True` is `--replace`, `cmvn='train'` is
    `--cmvn train`."""

    def flag(match: re.Match[str]) -> str:
        name = match[1].replace("_", "-")
        return f"--{name}" if match[2] == "True" else f"--{name} {match[3] or match[4] or ''}".rstrip()

    names = "replace|skip_bad|cmvn|dtype|train_partition|tier|alignments|unknown|alignment_unit|max_uncovered"
    names += "|classes|label_shift"
    return re.sub(rf"\b({names})=(True|'([^']*)'|([\d.]*\d|N|MS\b))", flag, message)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Only phonedata's own errors and what the system refused become one line; anything else keeps its traceback.
    """
    words = sys.argv[1:] if arguments is None else arguments
    try:
        check_place()
        command, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        command(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        usage = " ".join(["phonedata", *([] if isinstance(error, UnknownCommandError) else words[:1]), "--help"])
        _refuse(f"{error} see `{usage}`", 2)
    except SpecError as error:
        _refuse(as_flags(str(error)), 2)
    except PhonedataError as error:
        _refuse(as_flags(str(error)), 1)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; what is still buffered goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if not named_by_system(error):
            raise
        _refuse(unreadable(error), 1)
    except KeyboardInterrupt:
        # The others keep nothing of an interrupted call, nor leave anything behind.
        onward = "; the same command continues where it stopped" if words[:1] in (["pack"], ["extract"]) else ""
        print(f"interrupted{onward}", file=sys.stderr)
        sys.exit(130)


def _refuse(message: str, code: int) -> NoReturn:
    print(f"phonedata: {_visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(code)

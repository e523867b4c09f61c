"""`phonetrain evaluate`, `compare`, `predict`, `transcribe`, `suspects` and `export`: what a trained model can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ..display.tables import print_result, print_text
from .options import (
    Checkpoint,
    Device,
    Flag,
    Json,
    MovedCorpus,
    OneRun,
    OtherCorpus,
    Replace,
    Scale,
    Smooth,
    TrustCode,
    Warps,
)


def evaluate(
    run: OneRun = None,
    *,
    partition: str | None = None,
    checkpoint: Checkpoint = "best",
    corpus: OtherCorpus = None,
    device: Device = "auto",
    trust_code: TrustCode = False,
    phone_map: Annotated[str | None, Parameter("--map")] = None,
    warps: Warps = False,
    json: Flag = False,
) -> None:
    """Score a run's best checkpoint on its dev partition: accuracy with its interval, phone errors, what goes wrong.

    In fp32, as `phonetrain evaluate runs/a-1 --partition dev-other`.

    Parameters
    ----------
    partition
        A labelled partition; default: the run's dev.
    phone_map
        Score in fewer classes: timit-48, timit-39 (Lee and Hon), or a file with lines `symbol class`; frames of a
        `symbol` alone are not scored.
    json
        Print everything as JSON, the confusion matrix included.
    """
    from ..display.tables import evaluation_text
    from ..results.evaluate import evaluate

    result = evaluate(run, partition, checkpoint, corpus, device, trust_code, phone_map, warps)
    print_result(result, evaluation_text(result), json)


def compare(
    *runs: Path,
    partition: str | None = None,
    checkpoint: Checkpoint = "best",
    corpus: OtherCorpus = None,
    device: Device = "auto",
    trust_code: TrustCode = False,
    json: Flag = False,
) -> None:
    """Say which of several runs is better, how sure that is, and where the difference comes from.

    As `phonetrain compare runs/a-1 runs/b-1 runs/b-2`: the others against the first; runs that differ only in the seed
    are one row. Paired bootstrap over utterances; kept evaluations are used.

    Parameters
    ----------
    runs
        Run directories or names, two at least, each with @CHECKPOINT if wanted.
    partition
        A labelled partition; default: the dev of the runs.
    json
        Print everything as JSON, with all phonemes and speakers.
    """
    from ..display.tables import comparison_text
    from ..results.compare import compare

    result = compare(runs, partition, checkpoint, corpus, device, trust_code)
    print_result(result, comparison_text(result), json)


def predict(
    *runs: Path,
    partition: str | None = None,
    out: Path | None = None,
    checkpoint: Checkpoint = "best",
    corpus: OtherCorpus = None,
    device: Device = "auto",
    as_: Annotated[Literal["csv", "npy", "ark", "ctm", "textgrid", "text", "json"], Parameter(name="--as")] = "csv",
    labels: Literal["phoneme", "index"] = "phoneme",
    header: str = "id,label",
    smooth: Smooth = "none",
    scale: Scale = None,
    average: Literal["log", "probability"] = "log",
    warps: Warps = False,
    values: Literal["log-posterior", "posterior", "log-likelihood"] = "log-posterior",
    max_parameters: int | None = None,
    model: Path | None = None,
    replace: Replace = False,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Label every frame of a partition and write the submission CSV, or posteriors for a decoder; prints the path.

    Several runs are averaged, as `phonetrain predict runs/a-1 runs/a-2@last --smooth viterbi`.

    Parameters
    ----------
    runs
        Run directories or names, each with @CHECKPOINT if wanted; default: the one under runs/ trained last.
    partition
        Default: the run's test, or the only one of another corpus.
    out
        The file; default RUN/predictions/PARTITION.csv.
    as_
        csv (a label a frame), npy or ark (posteriors), ctm, textgrid, text or json (phones with times).
    labels
        phoneme strings, or the class index.
    header
        The two column names of the CSV, as Id,Class.
    average
        Of several runs: the mean of log posteriors, or of probabilities.
    values
        What npy and ark hold; log-likelihood is the log posterior minus the log prior.
    max_parameters
        The most parameters that all runs may have together.
    model
        An exported model.onnx in place of runs, as `phonetrain predict --model model.onnx --corpus packed`.
    """
    from ..results.predict import SCALE, predict

    path = predict(
        runs, partition, out, checkpoint, corpus, device, labels, header, form=as_, smooth=smooth,
        scale=SCALE if scale is None else scale, average=average, warps=warps, values=values,
        max_parameters=max_parameters, model=model, replace=replace, trust_code=trust_code,
    )  # fmt: skip
    print_result({"predictions": str(path)}, str(path), json)


def transcribe(
    *files: Path,
    run: OneRun = None,
    checkpoint: Checkpoint = "best",
    corpus: MovedCorpus = None,
    device: Device = "auto",
    as_: Annotated[Literal["ctm", "textgrid", "text", "json", "csv"], Parameter(name="--as")] = "ctm",
    out: Path | None = None,
    replace: Replace = False,
    smooth: Smooth = "viterbi",
    scale: Scale = None,
    trust_code: TrustCode = False,
    json: Flag = False,
) -> None:
    """Say which phones audio files hold, and when: `phonetrain transcribe a.wav b.flac --as textgrid`.

    Through the front end that the corpus of the run records; needs `pip install 'phonedata[audio]'`. Prints the phones,
    or writes them to --out.

    Parameters
    ----------
    files
        Mono .wav or .flac files; one of another sampling rate is resampled.
    as_
        ctm, text (phones without times and silence), json, csv (a label a frame), textgrid (a folder of TextGrids).
    out
        The file, or for textgrid the folder; default for textgrid: transcripts.
    json
        Print the phones as JSON; of what is written, its path.
    """
    from ..results.predict import SCALE
    from ..results.transcribe import transcribe

    text = transcribe(
        files, run, out, checkpoint, corpus, device, form="json" if json and out is None and as_ == "ctm" else as_,
        smooth=smooth, scale=SCALE if scale is None else scale, replace=replace,
        trust_code=trust_code,
    )  # fmt: skip
    if isinstance(text, Path):
        print_result({"transcripts": str(text)}, str(text), json)
    else:
        print_text(text)


def suspects(
    run: OneRun = None,
    *,
    partition: str | None = None,
    folds: int | None = None,
    share: float | None = None,
    out: Path | None = None,
    replace: Replace = False,
    checkpoint: Checkpoint = "best",
    corpus: OtherCorpus = None,
    device: Device = "auto",
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Say where labels look wrong: segments and utterances that the net contradicts, ranked, with a skip list.

    Writes a folder with the lists, TextGrids of what is given and what is heard, a picture, and skip.txt for
    `phonedata pack RAW PACKED --skip runs/a-1/suspects/skip.txt`. As `phonetrain suspects runs/a-1 --folds 3`.

    Parameters
    ----------
    partition
        A labelled partition; default: what the run was trained on.
    folds
        Train this many nets, each without one part of the training utterances, and ask each about that part: a net
        remembers what it was trained on, wrong labels too.
    share
        Of the segments, how many are listed; default 0.02.
    out
        The folder; default RUN/suspects.
    """
    from ..display.tables import suspects_text
    from ..results.suspects import SHARE, suspects

    result = suspects(
        run, partition, checkpoint, corpus, device, folds=folds, share=SHARE if share is None else share, out=out,
        replace=replace, trust_code=trust_code,
    )  # fmt: skip
    print_result(result, suspects_text(result), json)


def export(
    run: OneRun = None,
    *,
    out: Path | None = None,
    checkpoint: Checkpoint = "best",
    corpus: MovedCorpus = None,
    onnx: bool | None = None,
    replace: Replace = False,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Write a run's model for use without phonetrain: programs, weights, what they expect, and a model card.

    As `phonetrain export runs/a-1 --out model`: model.pt2, model.onnx, model.safetensors, model.json, MODEL_CARD.md.

    Parameters
    ----------
    out
        The directory; default RUN/export.
    onnx
        Insist on model.onnx, or leave it out; by default it is written where the extra [onnx] is installed.
    """
    from ..results.export import export

    path = export(run, out, checkpoint, onnx, corpus, replace=replace, trust_code=trust_code)
    print_result({"export": str(path)}, str(path), json)

"""The command line: phonedata pack | extract | merge | inspect | verify."""

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from phonedata.errors import PhonedataError

app = App(name="phonedata", help="Pack per-utterance speech features into a corpus that trains at memory speed.")


@app.command
def pack(
    raw: Path,
    packed: Path,
    *,
    layout: str | None = None,
    cmvn: str = "utterance",
    train_partition: str | None = None,
    dtype: str = "float16",
    context: int = 50,
    skip_bad: Annotated[bool, Parameter(negative="")] = False,
    replace: Annotated[bool, Parameter(negative="")] = False,
    workers: int | None = None,
    json_output: Annotated[bool, Parameter("--json", negative="")] = False,
):
    """Pack the raw folder RAW into the corpus PACKED, whole or not at all.

    Repeat an interrupted call and it continues where it stopped.

    Parameters
    ----------
    raw
        Folder of a known layout, e.g. RAW/train-clean-100/mfcc/ID.npy.
    packed
        The packed corpus to make.
    layout
        hw1p2, libriphone, kaldi or audio; found by itself when not given.
    cmvn
        Mean and variance normalisation per utterance, speaker, train (from --train-partition) or none.
    train_partition
        Where the statistics of --cmvn train come from.
    dtype
        float16 or float32.
    context
        Rows of zeros between utterances: the largest window side that training can ask for.
    skip_bad
        Leave out utterances that cannot be packed, and list them.
    replace
        Replace a packed corpus that is already there.
    workers
        Threads; by default one per processor.
    json_output
        Print the report as JSON.
    """
    from phonedata.packing import pack as run
    from phonedata.terminal import ProgressLine

    with ProgressLine() as line:
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
        )
    print(json.dumps(report.to_dict(), indent=2) if json_output else report)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; only phonedata's own errors become one line, anything else keeps its traceback."""
    try:
        app(arguments)
    except PhonedataError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)

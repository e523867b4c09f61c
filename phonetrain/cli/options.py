"""Options that several commands share, with the sentence that --help shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Overrides = Annotated[tuple[str, ...], Parameter(parse=False)]  # main.py cuts `key=value` out of the line
Flag = Annotated[bool, Parameter(negative=())]
Json = Annotated[bool, Parameter(negative=(), help="Print the result as JSON.")]
Quiet = Annotated[bool, Parameter(negative=(), help="No progress, warnings only.")]

Recipe = Annotated[str, Parameter(help="A name from `phonetrain recipes list`, or a TOML file.")]
OneRun = Annotated[
    Path | None, Parameter(help="The run's directory or name; default: the one under runs/ trained last.")
]
Checkpoint = Annotated[str, Parameter(help="best, last, or a step as step-1200.")]
Device = Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1 or mps.")]
Replace = Annotated[bool, Parameter(negative=(), help="Replace what is at --out already.")]
TrustCode = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Run the code of its model.factory, which you have read, and remember that you trust it on this machine.",
    ),
]

RecipeCorpus = Annotated[Path | None, Parameter(help="The packed corpus; default: the recipe's, else packed/.")]
MovedCorpus = Annotated[
    Path | None,
    Parameter(help="The packed corpus, where it has moved; it is recognised by its digest."),
]
OtherCorpus = Annotated[Path | None, Parameter(help="Another packed corpus with the same phonemes.")]

MaxTime = Annotated[
    str | None,
    Parameter(
        help="End, saved and scored, before this much time has passed: 2h, 90m, 45s. The start of Python, some "
        "seconds, is not counted."
    ),
]
StopAt = Annotated[str | None, Parameter(help="End, saved and scored, before this time of day: 23:30.")]

Smooth = Annotated[
    Literal["viterbi", "median", "none"],
    Parameter(help="viterbi (the best path, by which phone follows which in training), median (of 5 frames), none."),
]
Scale = Annotated[float | None, Parameter(help="Of log posteriors against the transitions of viterbi; default 1.5.")]
Warps = Annotated[
    bool,
    Parameter(
        negative=(),
        help="Hear each utterance as nine lengths of vocal tract and average over the five that the net is surest of: "
        "nine times the work; cepstra only.",
    ),
]

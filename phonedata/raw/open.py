"""Which layout a raw folder holds, and the corpus it opens as."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path

from ..errors import CorpusNotFound, RawDataError, SpecError
from .audio import AlignmentOptions
from .base import RawCorpus

# One module per layout, in the order in which they are looked for. Each has
#   LOOKS_FOR: str                       what the folder must hold, for the sentence when nothing fits
#   detect(root: Path) -> bool           cheap: looks at names only
#   open_layout(root: Path) -> RawCorpus  lists utterances, pairs partners; reads no features
LAYOUTS = ("hw1p2", "libriphone", "kaldi", "audio")


def open_raw(
    path: str | os.PathLike[str], layout: str | None = None, alignment: AlignmentOptions | None = None
) -> RawCorpus:
    """Open a raw folder, with its layout found by itself or forced by name; `alignment` is for audio alone.

    Raises CorpusNotFound when there is no folder or no known layout in it (the message says what was looked for),
    SpecError for an unknown layout name, RawDataError when the layout's own lists are damaged.
    """
    root = Path(path)
    if layout is not None and layout not in LAYOUTS:
        raise SpecError(f"layout {layout!r} is unknown; layouts are {', '.join(LAYOUTS)}")
    if not os.path.isdir(root):
        found = "is a file" if os.path.exists(root) else "does not exist"
        raise CorpusNotFound(
            f"{root}: {found}, but a raw corpus is a folder; give the folder that holds the partitions"
        )
    try:
        folders = [p for p in sorted(root.iterdir()) if os.path.isdir(p)]
    except OSError as error:
        raise RawDataError(f"{root}: cannot be listed ({error.strerror}); check its permissions") from None
    wanted: list[str] = []
    for name in LAYOUTS if layout is None else (layout,):
        module = importlib.import_module(f"phonedata.raw.{name}")
        if name == "audio" and layout is None:
            # A project folder may hold any sound beside the folder that is meant.
            _refuse_if_meant(root, _folders_below(folders), wanted)
        if module.detect(root):
            if name == "audio":
                return _with_notes(module.open_layout(root, options=alignment))
            if alignment is not None and alignment.arguments():
                option = alignment.arguments()[0].strip("-").replace("-", "_")
                raise SpecError(
                    f"{root}: {option} is for audio with alignments, this is the layout {name}; leave it out"
                )
            return _with_notes(module.open_layout(root))
        wanted.append(f"{name}: {module.LOOKS_FOR}")
    _refuse_if_meant(root, [*_folders_below(folders), *Path(os.path.abspath(root)).parents[:2]], wanted)
    raise CorpusNotFound(f"{root}: no known layout found; looked for " + "; ".join(wanted))


def _with_notes(corpus: RawCorpus) -> RawCorpus:
    """Says which partitions have no labels, but for the test partitions, which are meant to have none."""
    bare = [p.name for p in corpus.partitions if not p.labelled and not p.name.lower().startswith("test")]
    notes = [f"{name} has no labels where its layout has them; check the names beside its features" for name in bare]
    return replace(corpus, notes=(*corpus.notes, *notes))


def _folders_below(folders: list[Path]) -> list[Path]:
    """`folders` and those in them, as many as are cheap to look at."""
    below = list(folders[:50])
    for folder in folders[:50]:
        try:
            below += [entry for entry in sorted(folder.iterdir())[:50] if os.path.isdir(entry)]
        except OSError:
            continue
    return below


def _refuse_if_meant(root: Path, near: list[Path], wanted: list[str]) -> None:
    """A folder one or two levels up or down is the usual slip, and cheap to name. Raises CorpusNotFound.

    Audio is not looked for: any folder of a disk may hold some, and finding it takes long.
    """
    for candidate in near:
        for name in LAYOUTS:
            try:
                meant = name != "audio" and importlib.import_module(f"phonedata.raw.{name}").detect(candidate)
            except OSError:
                continue
            if meant:
                looked = "; ".join([*wanted, f"did you mean {candidate}?"])
                raise CorpusNotFound(f"{root}: no known layout found; looked for {looked}")

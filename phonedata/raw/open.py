"""Recognises the layout of a raw folder and opens it."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

from ..errors import CorpusNotFound, RawDataError, SpecError
from ..files import exists, is_file, is_folder
from .audio import AlignmentOptions
from .audio_files import unread_audio
from .base import RawCorpus, first_said
from .frame_labels import LabelOptions

LAYOUTS = ("hw1p2", "libriphone", "kaldi", "audio")
"""Our own, a module each, in the order in which they are looked for; those of other packages come before audio."""
ENTRY_POINTS = "phonedata.layouts"
"""The group of entry points under which a package registers a layout: its name, and a module that is a `Layout`."""


class Layout(Protocol):
    """What a module offers that reads a layout. `LOOKS_FOR` says what the folder must hold, where nothing fits."""

    LOOKS_FOR: str

    def detect(self, root: Path) -> bool:
        """Whether the folder has this layout; cheap: looks at names only."""

    def open_layout(self, root: Path) -> RawCorpus:
        """Lists utterances and pairs partners; reads no features."""


def _registered() -> dict[str, EntryPoint]:
    """The layouts of other packages, by name; no name of ours is taken over."""
    points = sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name)
    return {point.name: point for point in points if point.name not in LAYOUTS and point.name.isprintable()}


def _load(name: str, registered: dict[str, EntryPoint]) -> Any:
    """The layout `name`, a module that is a `Layout`; ours take options too. Raises SpecError where a package's own
    cannot be imported or is none."""
    if name not in registered:
        return importlib.import_module(f"phonedata.raw.{name}")
    point = registered[name]
    package = point.dist.name if point.dist else "a package"
    try:
        layout = point.load()
    except (ImportError, AttributeError) as error:
        raise SpecError(f"layout {name!r} of {package} cannot be imported ({error}); mend or uninstall it") from None
    missing = [what for what in ("LOOKS_FOR", "detect", "open_layout") if not hasattr(layout, what)]
    if missing:
        raise SpecError(
            f"layout {name!r} of {package}: {point.value} has no {', '.join(missing)}; mend or uninstall it"
        )
    return layout


def open_raw(
    path: str | os.PathLike[str],
    layout: str | None = None,
    alignment: AlignmentOptions | None = None,
    labels: LabelOptions | None = None,
) -> RawCorpus:
    """Open a raw folder, with its layout found by itself or forced by name; `alignment` is for audio, `labels` for our
    other layouts.

    Raises CorpusNotFound when there is no folder or no known layout in it (the message says what was looked for),
    SpecError for an unknown layout name or an option that the layout has no use for, RawDataError when the layout's own
    lists are damaged.
    """
    root = Path(path)
    registered = _registered()
    known = (*LAYOUTS[:-1], *registered, LAYOUTS[-1])
    if layout is not None and layout not in known:
        raise SpecError(f"layout {layout!r} is unknown; layouts are {', '.join(known)}")
    if not is_folder(root):
        found = "is a file" if exists(root) else "does not exist"
        raise CorpusNotFound(
            f"{root}: {found}, but a raw corpus is a folder; give the folder that holds the partitions"
        )
    try:
        folders = [p for p in sorted(root.iterdir()) if is_folder(p)]
    except OSError as error:
        raise RawDataError(f"{root}: cannot be listed ({error.strerror}); check its permissions") from None
    wanted: list[str] = []
    for name in known if layout is None else (layout,):
        if name == "audio" and layout is None:
            # A project folder may hold any sound beside the folder that is meant.
            _refuse_if_meant(root, _folders_below(folders), wanted, registered)
        try:
            module = _load(name, registered)
        except SpecError as error:
            # A package that is broken must not stand in the way of folders that are not its own.
            if layout is not None:
                raise
            wanted.append(str(error))
            continue
        if module.detect(root):
            taken = alignment if name == "audio" else labels if name in LAYOUTS else None
            if taken is not alignment:
                _refuse_option(root, name, alignment, "for audio with alignments")
            if taken is not labels:
                _refuse_option(root, name, labels, "for labels that stand one a frame in files")
            corpus = module.open_layout(root) if taken is None else module.open_layout(root, taken)
            if not isinstance(corpus, RawCorpus):
                kind = type(corpus).__name__
                raise SpecError(f"layout {name!r}: its open_layout returns {kind}, wanted phonedata.RawCorpus; mend it")
            if isinstance(taken, LabelOptions):
                if not any(partition.labelled for partition in corpus.partitions):
                    _refuse_option(root, name, labels, "for labels, of which there are none")
                corpus = taken.recorded(corpus)
            return _with_notes(corpus)
        wanted.append(f"{name}: {module.LOOKS_FOR}")
    _refuse_if_meant(root, [*_folders_below(folders), *Path(os.path.abspath(root)).parents[:2]], wanted, registered)
    if is_file(root / "zarr.json"):
        raise CorpusNotFound(f"{root}: is a packed corpus; give the raw folder that such a one is made of")
    unread = unread_audio(root)
    raise CorpusNotFound(f"{root}: no known layout found; looked for {'; '.join([*wanted, *unread])}")


def _refuse_option(root: Path, layout: str, options: AlignmentOptions | LabelOptions | None, meant: str) -> None:
    """Raises SpecError for an option that the layout has no use for."""
    if options is not None and (said := first_said(options)):
        raise SpecError(f"{root}: {said} is {meant}, this is the layout {layout}; leave it out")


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
            below += [entry for entry in sorted(folder.iterdir())[:50] if is_folder(entry)]
        except OSError:
            continue
    return below


def _refuse_if_meant(root: Path, near: list[Path], wanted: list[str], registered: dict[str, EntryPoint]) -> None:
    """A folder one or two levels up or down is the usual slip, and cheap to name. Raises CorpusNotFound.

    Audio is not looked for: any folder of a disk may hold some, and finding it takes long.
    """
    for candidate in near:
        for name in (*LAYOUTS[:-1], *registered):
            try:
                meant = _load(name, registered).detect(candidate)
            except (OSError, SpecError):
                continue
            if meant:
                looked = "; ".join([*wanted, f"did you mean {candidate}?"])
                raise CorpusNotFound(f"{root}: no known layout found; looked for {looked}")

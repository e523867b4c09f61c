"""Turns per-utterance feature files into context windows, at memory speed."""

import importlib

__version__ = "0.1.0"

# Public name -> the room it lives in. Rooms are imported when first asked for, so that `import phonedata` costs
# nothing and packing needs no torch.
_ROOMS = {
    "PhonedataError": "errors",
    "CorpusNotFound": "errors",
    "CorpusExists": "errors",
    "FormatError": "errors",
    "RawDataError": "errors",
    "SpecError": "errors",
    "MissingReader": "errors",
    "PhonemeSet": "phonemes",
    "ARPABET": "phonemes",
    "EpochOrder": "loaders.order",
    "SlabOrder": "loaders.order",
    "SequentialOrder": "loaders.order",
    "WindowSpec": "loaders.windows",
    "WindowBatch": "loaders.windows",
    "PackedCorpus": "format.corpus",
    "Partition": "format.corpus",
    "Selection": "format.selection",
    "pack": "packing.pack",
    "PackReport": "packing.report",
    "extract": "packing.extract",
    "merge": "packing.merge",
    "inspect": "format.describe",
    "open_loader": "loaders.open",
}

__all__ = sorted(_ROOMS)


def __getattr__(name: str):
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module 'phonedata' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"phonedata.{room}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})

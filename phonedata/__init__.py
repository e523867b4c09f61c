"""Turns per-utterance feature files into context windows, at memory speed."""

import importlib
from typing import TYPE_CHECKING

from .system import find_place_for_kernels

__version__ = "0.1.0"

find_place_for_kernels()

# Public name -> the module that defines it. Modules are imported when a name is first used: `import phonedata` costs
# nothing, and packing needs no torch.
_MODULES = {
    "PhonedataError": "errors",
    "CorpusNotFound": "errors",
    "CorpusExists": "errors",
    "FormatError": "errors",
    "RawDataError": "errors",
    "SpecError": "errors",
    "MissingReader": "errors",
    "WorkerError": "errors",
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
    "pack_utterances": "packing.utterances",
    "extract": "packing.extract",
    "fold_classes": "raw.views",
    "RawCorpus": "raw.base",
    "RawPartition": "raw.base",
    "Problem": "raw.base",
    "audio_features": "packing.audio_features",
    "frontend_of": "packing.audio_features",
    "AlignmentOptions": "raw.audio",
    "FrontEnd": "raw.frontend",
    "inspect": "format.describe",
    "open_loader": "loaders.open",
    "LOADERS": "loaders.open",
    "Loader": "loaders.base",
    "available_memory": "system",
}

__all__ = sorted(_MODULES)


if TYPE_CHECKING:
    # The same names for type checkers and editors, which do not run `__getattr__`; tests/test_face.py compares them.
    from .errors import CorpusExists as CorpusExists
    from .errors import CorpusNotFound as CorpusNotFound
    from .errors import FormatError as FormatError
    from .errors import MissingReader as MissingReader
    from .errors import PhonedataError as PhonedataError
    from .errors import RawDataError as RawDataError
    from .errors import SpecError as SpecError
    from .errors import WorkerError as WorkerError
    from .format.corpus import PackedCorpus as PackedCorpus
    from .format.corpus import Partition as Partition
    from .format.describe import inspect as inspect
    from .format.selection import Selection as Selection
    from .loaders.base import Loader as Loader
    from .loaders.open import LOADERS as LOADERS
    from .loaders.open import open_loader as open_loader
    from .loaders.order import EpochOrder as EpochOrder
    from .loaders.order import SequentialOrder as SequentialOrder
    from .loaders.order import SlabOrder as SlabOrder
    from .loaders.windows import WindowBatch as WindowBatch
    from .loaders.windows import WindowSpec as WindowSpec
    from .packing.audio_features import audio_features as audio_features
    from .packing.audio_features import frontend_of as frontend_of
    from .packing.extract import extract as extract
    from .packing.pack import pack as pack
    from .packing.report import PackReport as PackReport
    from .packing.utterances import pack_utterances as pack_utterances
    from .phonemes import ARPABET as ARPABET
    from .phonemes import PhonemeSet as PhonemeSet
    from .raw.audio import AlignmentOptions as AlignmentOptions
    from .raw.base import Problem as Problem
    from .raw.base import RawCorpus as RawCorpus
    from .raw.base import RawPartition as RawPartition
    from .raw.frontend import FrontEnd as FrontEnd
    from .raw.views import fold_classes as fold_classes
    from .system import available_memory as available_memory
else:

    def __getattr__(name: str) -> object:
        module = _MODULES.get(name)
        if module is None:
            raise AttributeError(f"module 'phonedata' has no attribute {name!r}")
        value = getattr(importlib.import_module(f"phonedata.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})

"""The public names of phonedata: what type checkers and editors read, and face.py at run time."""

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

__version__: str

"""Turns per-utterance feature files into context windows, at memory speed."""

from .face import attach_stub
from .system import find_place_for_kernels

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)

find_place_for_kernels()

"""Speech with its phonemes: espeak-ng by ctypes, sample positions of phoneme events, espeak's mnemonics as ARPABET.

The library keeps static state that no call resets (its pitch phase and its noise), so the same text sounds slightly
different the second time. Repeatable speech needs a fresh process and the same calls in the same order.
"""

import ctypes
from ctypes import POINTER, c_char, c_char_p, c_int, c_long, c_short, c_uint, c_void_p

import numpy as np

from phonedata.errors import MissingReader, SpecError

SYNCHRONOUS, PHONEME_EVENTS, DO_NOT_EXIT = 2, 0x0001, 0x8000
UTF8, LIST_TERMINATED, PHONEME = 1, 0, 7
RATE, PITCH, RANGE = 1, 3, 4

# en-us mnemonic -> ARPABET, as CMUdict would spell the word. A vowel that swallows an R (or a syllabic L) is two
# classes; the number is the share of its time that the first one gets.
ARPABET_OF = {
    "0": "AA", "A:": "AA", "a": "AE", "aa": "AE", "V": "AH", "@": "AH", "@2": "AH", "@-": "AH", "@5": "AH",
    "a#": "AH", "O:": "AO", "O2": "AO", "O": "AO", "aU": "AW", "aI": "AY", "E": "EH", "E2": "EH", "3": "ER",
    "3:": "ER", "eI": "EY", "I": "IH", "I#": "IH", "I2": "IH", "i": "IY", "i:": "IY", ";": "IY", "oU": "OW",
    "OI": "OY", "U": "UH", "u:": "UW", "u": "UW", "A@": ("AA", 0.5, "R"), "O@": ("AO", 0.5, "R"),
    "o@": ("AO", 0.5, "R"), "e@": ("EH", 0.5, "R"), "U@": ("UH", 0.5, "R"), "i@3": ("IH", 0.5, "R"),
    "i@": ("IY", 0.5, "AH"), "aI@": ("AY", 0.6, "AH"), "aI3": ("AY", 0.6, "ER"), "aU@": ("AW", 0.6, "ER"),
    "@L": ("AH", 0.4, "L"), "b": "B", "tS": "CH", "d": "D", "D": "DH", "f": "F", "g": "G", "h": "HH", "dZ": "JH",
    "k": "K", "l": "L", "m": "M", "n": "N", "n-": "N", "N": "NG", "p": "P", "r": "R", "r-": "R", "s": "S",
    "S": "SH", "t": "T", "t#": "T", "t2": "T", "?": "T", "T": "TH", "v": "V", "w": "W", "j": "Y", "z": "Z",
    "Z": "ZH", "_": "[SIL]", "_:": "[SIL]",
}  # fmt: skip
# The event of these marks the burst or the start of the noise; the silence before it is their closure.
CLOSED = frozenset(("b", "tS", "d", "D", "f", "g", "dZ", "k", "p", "s", "S", "t", "t2", "?", "T", "v", "z", "Z", "h"))


class _Identity(ctypes.Union):
    _fields_ = [("number", c_int), ("name", c_char_p), ("string", c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", c_int), ("unique_identifier", c_uint), ("text_position", c_int), ("length", c_int),
        ("audio_position", c_int), ("sample", c_int), ("user_data", c_void_p), ("id", _Identity),
    ]  # fmt: skip


_CALLBACK = ctypes.CFUNCTYPE(c_int, POINTER(c_short), c_int, POINTER(_Event))


class Synthesiser:
    """One espeak-ng in this process: text in, waveform and phoneme segments out.

    Raises MissingReader without espeakng-loader, SpecError for a voice that is not there.
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError:
            raise MissingReader(
                "speech synthesis needs espeakng-loader (espeak-ng, GPL-3.0), which is not installed; "
                "pip install -e '.[demo]'"
            ) from None
        self._library = library = ctypes.CDLL(espeakng_loader.get_library_path())
        library.espeak_Initialize.argtypes = [c_int, c_int, c_char_p, c_int]
        library.espeak_Synth.argtypes = [c_char_p, ctypes.c_size_t, c_uint, c_int, c_uint, c_uint, c_void_p, c_void_p]
        library.espeak_ng_SetRandSeed.argtypes = [c_long]
        self.rate_hz = library.espeak_Initialize(
            SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), DO_NOT_EXIT | PHONEME_EVENTS
        )
        if self.rate_hz <= 0:
            raise SpecError(
                f"espeak-ng did not start (code {self.rate_hz}) on {espeakng_loader.get_data_path()}; reinstall it"
            )
        library.espeak_ng_SetRandSeed(1)
        self._pieces, self._events = [], []
        self._callback = _CALLBACK(self._receive)  # kept: ctypes frees a callback nobody holds
        library.espeak_SetSynthCallback(self._callback)

    def _receive(self, waveform, num_samples, events) -> int:
        if num_samples > 0:
            self._pieces.append(ctypes.string_at(waveform, 2 * num_samples))
        position = 0
        while events[position].type != LIST_TERMINATED:
            event = events[position]
            if event.type == PHONEME:
                self._events.append((event.sample, event.id.string.decode().lstrip("',%=|")))
            position += 1
        return 0

    def set_voice(self, name: str) -> None:
        """Speak as `name` from now on, such as `en-us+m3`: an accent and a variant of the voice."""
        code = self._library.espeak_SetVoiceByName(name.encode())
        if code:
            raise SpecError(f"espeak-ng has no voice {name!r} (code {code}); reinstall espeakng-loader")

    def speak(self, text: str, words_per_minute: int, pitch: int, pitch_range: int):
        """Waveform (n,) int16 at `rate_hz`, segment starts (S,) int64 in samples, and S ARPABET symbols.

        Segment s covers starts[s] up to starts[s + 1] (the last one up to n); silence before the first is [SIL].
        """
        self._pieces, self._events = [], []
        for parameter, value in ((RATE, words_per_minute), (PITCH, pitch), (RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        data = text.encode() + b"\0"
        code = self._library.espeak_Synth(data, len(data), 0, 1, 0, UTF8, None, None)
        if code:
            raise SpecError(f"espeak-ng refused {text!r} (code {code})")
        waveform = np.frombuffer(b"".join(self._pieces), dtype=np.int16)
        return waveform, *_segments(waveform, self._events, text)


def _segments(waveform: np.ndarray, events: list[tuple[int, str]], text: str) -> tuple[np.ndarray, list[str]]:
    """Where each ARPABET phoneme starts: closures moved to their consonant, R-coloured vowels split."""
    starts, symbols = [0], ["[SIL]"]
    ends = [sample for sample, _ in events[1:]] + [len(waveform)]
    previous_event, previous = 0, "_"
    for (sample, mnemonic), end in zip(events, ends):
        if mnemonic not in ARPABET_OF:
            raise SpecError(
                f"espeak's phoneme {mnemonic!r} in {text!r} has no ARPABET class; add it to tools/synthesis.py"
            )
        start = sample
        if mnemonic in CLOSED and previous not in ("_", "_:"):
            # espeak writes the closure as digital silence in front of the event, inside the previous phoneme's time.
            sounding = np.flatnonzero(np.abs(waveform[previous_event:sample].astype(np.int32)) > 2)
            start = previous_event + (int(sounding[-1]) + 1 if len(sounding) else 0)
        target = ARPABET_OF[mnemonic]
        parts = [(start, target)] if isinstance(target, str) else [
            (start, target[0]), (start + int((end - start) * target[1]), target[2])
        ]  # fmt: skip
        for part_start, symbol in parts:
            starts.append(part_start)
            symbols.append(symbol)
        previous_event, previous = sample, mnemonic
    return np.array(starts, dtype=np.int64), symbols

"""FrontEnd: waveform -> MFCC or log mel energies as Kaldi makes them, where frames lie in time, and resampling."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any, Literal

import numpy as np

from ..errors import MissingReader, SpecError


@dataclass(frozen=True)
class FrontEnd:
    """Features of kaldi-native-fbank with Kaldi's defaults and no dither: the same waveform gives the same bytes.

    features: "mfcc", or "fbank" for log mel energies. coefficients: of MFCC, 28 by default; fbank has `mel_bins`.
    deltas: how many derivatives follow, 0 to 2. c0: whether MFCC's C0 is the first or the last coefficient.
    high_hz: upper end of the mel bins; None: half of `rate_hz`. Raises SpecError for values that give no features.
    """

    features: Literal["mfcc", "fbank"] = "mfcc"
    rate_hz: int = 16000
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    mel_bins: int = 40
    coefficients: int | None = None
    deltas: int = 0
    c0: Literal["first", "last"] = "first"
    low_hz: float = 20.0
    high_hz: float | None = None
    window: Literal["povey", "hamming", "hanning", "rectangular"] = "povey"
    preemphasis: float = 0.97
    lifter: float = 22.0

    def __post_init__(self) -> None:
        for name, allowed in (
            ("features", ("mfcc", "fbank")),
            ("deltas", (0, 1, 2)),
            ("c0", ("first", "last")),
            ("window", ("povey", "hamming", "hanning", "rectangular")),
        ):
            if getattr(self, name) not in allowed:
                raise SpecError(f"{name} {getattr(self, name)!r}, wanted {', '.join(map(str, allowed))}")
        if self.features == "fbank":
            if self.coefficients is not None or self.c0 != "first" or self.lifter != 22.0:
                raise SpecError("coefficients, c0 and lifter are settings of mfcc; fbank has one value a mel bin")
        elif self.coefficients is None:
            object.__setattr__(self, "coefficients", 28)
        if not 0 <= self.preemphasis <= 1 or not 0 <= self.lifter <= 1000:
            raise SpecError(f"preemphasis {self.preemphasis}, lifter {self.lifter}; wanted 0 to 1, and 0 (off) to 1000")
        high = self.high_hz or self.rate_hz / 2
        if not self.low_hz < high <= self.rate_hz / 2:
            raise SpecError(
                f"high {high} Hz, wanted above low ({self.low_hz}) up to half the rate ({self.rate_hz / 2})"
            )
        if not 1 <= (self.coefficients or 1) <= self.mel_bins <= 200 or self.coefficients == 0:
            raise SpecError(
                f"{self.coefficients} coefficients of {self.mel_bins} mel bins; "
                "wanted 1 <= coefficients <= mel bins <= 200"
            )
        if not 4000 <= self.rate_hz <= 96000 or not 0 <= self.low_hz < self.rate_hz / 2:
            raise SpecError(
                f"rate {self.rate_hz} Hz, low {self.low_hz} Hz; wanted a rate of 4000 to 96000 and low below half of it"
            )
        if not 1 <= self.frame_shift_ms <= self.frame_length_ms <= 200:
            raise SpecError(
                f"frame shift {self.frame_shift_ms} ms, length {self.frame_length_ms} ms; "
                "wanted 1 <= shift <= length <= 200"
            )
        for name in ("frame_shift_ms", "frame_length_ms"):
            # Kaldi truncates to whole samples: 10 ms at 22,050 Hz would be 9.977 ms, and labels would drift.
            if (self.rate_hz * getattr(self, name) / 1000) % 1:
                raise SpecError(
                    f"{name} {getattr(self, name)} is no whole number of samples at {self.rate_hz} Hz; take another"
                )

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "FrontEnd":
        """The front end that a `frontend.toml` describes; the inverse of `describe`.

        Raises SpecError where the table leaves a setting open or has one that cannot be repeated: features that are
        only similar would give wrong labels without a word.
        """
        kind = table.get("kind")
        if kind not in ("mfcc", "fbank"):
            raise SpecError(f"kind is {kind!r}, wanted mfcc or fbank")
        wanted = cls(features=kind).describe()
        if missing := wanted.keys() - table.keys():
            raise SpecError(f"{', '.join(sorted(missing))} not said")
        if more := table.keys() - wanted.keys() - {"library", "source"}:
            raise SpecError(f"{', '.join(sorted(more))} not known")
        for name in ("snip_edges", "sample_scale"):
            if table[name] != wanted[name]:
                raise SpecError(f"{name} is {table[name]!r}, wanted {wanted[name]!r}")
        try:
            return cls(features=kind, **{f.name: table[f.name] for f in fields(cls) if f.name in table})
        except TypeError as error:
            raise SpecError(f"a setting has a wrong type ({error})") from None

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.rate_hz * self.frame_shift_ms / 1000)

    @property
    def length(self) -> int:
        """Samples that a frame covers."""
        return int(self.rate_hz * self.frame_length_ms / 1000)

    def num_frames(self, num_samples: int) -> int:
        """Frames that lie wholly inside `num_samples` (Kaldi's snip_edges = true)."""
        return 0 if num_samples < self.length else 1 + (num_samples - self.length) // self.shift

    def centres(self, num_frames: int) -> np.ndarray:
        """Centres (T,) float64 of the frames, in seconds: frame t covers samples [t * shift, t * shift + length)."""
        return (np.arange(num_frames) * self.shift + self.length / 2) / self.rate_hz

    @property
    def dim(self) -> int:
        """Coefficients of a frame, deltas included."""
        static = self.mel_bins if self.features == "fbank" else self.coefficients or 0
        return static * (1 + self.deltas)

    def compute(self, waveform: np.ndarray) -> np.ndarray:
        """Features (T, dim) float32 of a mono `waveform` at `rate_hz`, in the scale of int16 samples.

        T may be 0. Static coefficients come first, then their deltas. Raises MissingReader without kaldi-native-fbank.
        """
        try:
            import kaldi_native_fbank as fbank
        except ImportError:
            raise MissingReader(
                "features need kaldi-native-fbank, which is not installed; pip install 'phonedata[audio]'"
            ) from None
        options = fbank.FbankOptions() if self.features == "fbank" else fbank.MfccOptions()
        frame, mel = options.frame_opts, options.mel_opts
        frame.samp_freq, frame.dither, frame.snip_edges = self.rate_hz, 0.0, True
        frame.frame_length_ms, frame.frame_shift_ms = self.frame_length_ms, self.frame_shift_ms
        frame.window_type, frame.preemph_coeff = self.window, self.preemphasis
        mel.num_bins, mel.low_freq, mel.high_freq = self.mel_bins, self.low_hz, self.high_hz or self.rate_hz / 2
        options.use_energy = False
        if self.features == "mfcc":
            options.num_ceps, options.cepstral_lifter = self.coefficients, self.lifter
        computer = fbank.OnlineFbank(options) if self.features == "fbank" else fbank.OnlineMfcc(options)
        computer.accept_waveform(self.rate_hz, np.ascontiguousarray(waveform, dtype=np.float32))
        computer.input_finished()
        static = np.empty((computer.num_frames_ready, self.dim // (1 + self.deltas)), dtype=np.float32)
        for t in range(len(static)):
            static[t] = computer.get_frame(t)
        if self.c0 == "last":
            static = np.ascontiguousarray(np.roll(static, -1, axis=1))
        return add_deltas(static, self.deltas)

    def describe(self) -> dict[str, str | int | float | bool]:
        """Every setting that decides the features, as a raw folder's `frontend.toml` and a packed corpus keep it."""
        entries = {"kind": self.features, **asdict(self), "high_hz": self.high_hz or self.rate_hz / 2}
        del entries["features"]
        if self.features == "fbank":
            for name in ("coefficients", "lifter", "c0"):
                del entries[name]
        entries |= {"dither": 0.0, "snip_edges": True, "sample_scale": "int16"}
        return entries

    def to_toml(self, **more: str) -> str:
        """Text of a `frontend.toml`: how the features of a raw folder were made."""
        library = {"library": f"kaldi-native-fbank {version('kaldi-native-fbank')}"}
        entries = {**self.describe(), **library, **more}
        return "".join(f"{key} = {_toml(value)}\n" for key, value in entries.items())


def add_deltas(static: np.ndarray, order: int) -> np.ndarray:
    """`static` (T, D) and its derivatives up to `order`: (T, D * (1 + order)) float32, as Kaldi's add-deltas does.

    A derivative is a regression over two frames to each side; beyond an end, the frame at that end counts.
    """
    blocks, kernel = [static], np.ones(1)
    for _ in range(order if len(static) else 0):
        kernel = np.convolve(kernel, np.arange(2, -3, -1) / 10)
        reach = len(kernel) // 2
        padded = np.pad(static.astype(np.float64), ((reach, reach), (0, 0)), mode="edge")
        blocks.append(sum(w * padded[j : j + len(static)] for j, w in enumerate(kernel[::-1])))
    return np.concatenate(blocks, axis=1, dtype=np.float32) if len(static) else np.repeat(static, 1 + order, axis=1)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def num_resampled(num_samples: int, from_hz: int, to_hz: int) -> int:
    """Samples that `resample` makes of `num_samples`."""
    return -(-num_samples * to_hz // from_hz)


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """`waveform` (n,) at `from_hz` as float32 at `to_hz`: ceil(n * to / from) samples, sample 0 at time 0 in both.

    soxr's "very high" quality. Raises MissingReader without soxr.
    """
    waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    if from_hz == to_hz:
        return waveform
    try:
        import soxr
    except ImportError:
        raise MissingReader("resampling needs soxr, which is not installed; pip install 'phonedata[audio]'") from None
    resampled = np.zeros(num_resampled(len(waveform), from_hz, to_hz), dtype=np.float32)
    found = soxr.resample(waveform, from_hz, to_hz, quality="VHQ")[: len(resampled)]
    resampled[: len(found)] = found  # soxr rounds the number of samples, and may make one less
    return resampled


def labels_at(
    centres: np.ndarray, starts: np.ndarray, ends: np.ndarray, classes: np.ndarray, outside: int, dtype
) -> np.ndarray:
    """Labels (T,): the class of the segment that covers each centre, `outside` where none does.

    `starts`, `ends` (S,) are in the unit of `centres`, sorted and not overlapping; a segment covers start <= t < end.
    """
    if not len(starts):
        return np.full(len(centres), outside, dtype=dtype)
    segment = np.searchsorted(starts, centres, side="right") - 1
    covered = (segment >= 0) & (centres < np.asarray(ends)[np.maximum(segment, 0)])
    return np.where(covered, np.asarray(classes)[np.maximum(segment, 0)], outside).astype(dtype)

"""FrontEnd: waveform -> MFCC as Kaldi makes them, where each frame lies in time, and resampling to its rate."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from math import ceil, gcd

import numpy as np

from ..errors import MissingReader, RawDataError, SpecError

# 22,050 -> 16,000 Hz is 320 / 441; the resampling matrix of two coprime rates would need gigabytes.
MAX_RATIO_TERM = 6000


@dataclass(frozen=True)
class FrontEnd:
    """MFCC of kaldi-native-fbank with Kaldi's defaults and no dither, so that the same waveform gives the same bytes.

    Raises SpecError for values that give no features.
    """

    rate_hz: int = 16000
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    mel_bins: int = 40
    coefficients: int = 28
    low_hz: float = 20.0

    def __post_init__(self):
        if not 1 <= self.coefficients <= self.mel_bins <= 200:
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

    def mfcc(self, waveform: np.ndarray) -> np.ndarray:
        """MFCC (T, coefficients) float32, C0 first, of a mono `waveform` at `rate_hz`, in the scale of int16 samples.

        T may be 0. Raises MissingReader without kaldi-native-fbank.
        """
        try:
            import kaldi_native_fbank as fbank
        except ImportError:
            raise MissingReader(
                "MFCC need kaldi-native-fbank, which is not installed; pip install 'phonedata[audio]'"
            ) from None
        options = fbank.MfccOptions()
        frame, mel = options.frame_opts, options.mel_opts
        frame.samp_freq, frame.dither, frame.snip_edges = self.rate_hz, 0.0, True
        frame.frame_length_ms, frame.frame_shift_ms = self.frame_length_ms, self.frame_shift_ms
        mel.num_bins, mel.low_freq, mel.high_freq = self.mel_bins, self.low_hz, 0.0
        options.num_ceps, options.use_energy = self.coefficients, False
        computer = fbank.OnlineMfcc(options)
        computer.accept_waveform(self.rate_hz, np.ascontiguousarray(waveform, dtype=np.float32))
        computer.input_finished()
        features = np.empty((computer.num_frames_ready, self.coefficients), dtype=np.float32)
        for t in range(len(features)):
            features[t] = computer.get_frame(t)
        return features

    def to_toml(self, **more) -> str:
        """Text of a `frontend.toml`: how the features of a raw folder were made."""
        entries = {"kind": "mfcc", **asdict(self), "high_hz": self.rate_hz / 2, "window": "povey", "preemphasis": 0.97}
        entries |= {"lifter": 22, "c0": "first", "dither": 0.0, "snip_edges": True, "sample_scale": "int16"}
        entries |= {"library": f"kaldi-native-fbank {version('kaldi-native-fbank')}", **more}
        return "".join(f"{key} = {_toml(value)}\n" for key, value in entries.items())


def _toml(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'


@lru_cache(maxsize=4)
def _resampling_matrix(up: int, down: int) -> tuple[np.ndarray, int]:
    """Weights (down + 2 * reach, up): `up` output samples from one block of `down` input samples and its neighbours.

    A sinc cut off at 0.945 of the lower Nyquist frequency under a Kaiser window: beta 12, 48 zero crossings a side.
    """
    crossings, beta = 48, 12.0
    cutoff = 0.945 * min(1.0, up / down)  # in units of the input's Nyquist frequency
    reach = ceil(crossings / cutoff)
    distance = np.arange(up) * (down / up) - (np.arange(down + 2 * reach)[:, None] - reach)
    window = np.i0(beta * np.sqrt(np.clip(1 - (distance / reach) ** 2, 0, None))) / np.i0(beta)
    weights = np.where(np.abs(distance) <= reach, cutoff * np.sinc(cutoff * distance) * window, 0.0)
    return weights.astype(np.float32), reach


def resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """`waveform` (n,) at `from_hz` as float32 at `to_hz`: ceil(n * to / from) samples, sample 0 at time 0 in both.

    Polyphase FIR as one matrix product a block. Raises RawDataError for a pair of rates without a small ratio.
    """
    waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    if from_hz == to_hz:
        return waveform
    common = gcd(from_hz, to_hz)
    up, down = to_hz // common, from_hz // common
    if max(up, down) > MAX_RATIO_TERM:
        raise RawDataError(
            f"{from_hz} Hz to {to_hz} Hz is a ratio of {up} / {down}, too fine to resample here; convert it first, "
            "with sox or ffmpeg"
        )
    weights, reach = _resampling_matrix(up, down)
    blocks = ceil(len(waveform) / down)
    if not blocks:
        return waveform
    padded = np.zeros(blocks * down + 2 * reach, dtype=np.float32)
    padded[reach : reach + len(waveform)] = waveform
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(weights))[::down]
    return (windows @ weights).reshape(-1)[: ceil(len(waveform) * up / down)]


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

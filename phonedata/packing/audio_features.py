"""Features of one audio file as a packed corpus has them: its front end, normalisation and rounding."""

from os import PathLike, fspath

import numpy as np

from ..cmvn import ABSOLUTE_FLOOR, RELATIVE_FLOOR, Moments, moments
from ..errors import RawDataError, SpecError
from ..format.corpus import PackedCorpus
from ..raw.audio_files import read_waveform
from ..raw.frontend import FrontEnd


def frontend_of(corpus: PackedCorpus) -> FrontEnd:
    """The front end that made the features of `corpus`. Raises SpecError where it records none that can be repeated."""
    mend = (
        "write it into frontend.toml in the raw folder (docs/FORMAT.md lists the settings) and pack again: "
        f"phonedata pack RAW {corpus.path} --replace"
    )
    table = corpus.attributes.get("frontend")
    if not table:
        raise SpecError(f"{corpus.path}: does not record how its features were made; {mend}")
    try:
        frontend = FrontEnd.of(table)
    except SpecError as error:
        raise SpecError(f"{corpus.path}: its front end cannot be repeated: {error}; {mend}") from None
    if frontend.dim != corpus.feature_dim:
        raise SpecError(
            f"{corpus.path}: records a front end of {frontend.dim} coefficients, but has {corpus.feature_dim}; {mend}"
        )
    return frontend


def audio_features(file: str | PathLike[str], corpus: PackedCorpus) -> np.ndarray:
    """Features (T, D) float32 of a mono audio file, with the values that packing it into `corpus` would have stored.

    With CMVN by speaker the file counts as a speaker of its own. Audio of another rate is resampled.
    Raises SpecError as `frontend_of` does, RawDataError where the file cannot be read or is shorter than one frame,
    MissingReader.
    """
    frontend = frontend_of(corpus)
    raw = frontend.compute(read_waveform(fspath(file), frontend.rate_hz))
    if not len(raw):
        raise RawDataError(
            f"{fspath(file)}: is shorter than one frame of {frontend.frame_length_ms:g} ms; leave it out"
        )
    mean, scale = np.zeros(corpus.feature_dim), np.ones(corpus.feature_dim)
    if corpus.cmvn["kind"] == "train":
        mean, deviation = np.array(corpus.cmvn["mean"]), np.array(corpus.cmvn["std"])
        floor = np.maximum(RELATIVE_FLOOR * np.abs(mean), ABSOLUTE_FLOOR)
        scale = 1.0 / np.where(deviation <= floor, 1.0, deviation)
    elif corpus.cmvn["kind"] != "none":
        square = np.empty_like(mean)
        moments(raw, mean, square)
        own = Moments(corpus.feature_dim).merge(np.array([len(raw)]), mean[None], square[None])
        mean, scale = own.mean, own.scale
    with np.errstate(over="ignore"):
        stored = ((raw - mean) * scale).astype(np.float32).astype(corpus.dtype).astype(np.float32)
    if not np.isfinite(stored).all():
        raise RawDataError(f"{fspath(file)}: its features do not fit {corpus.dtype}, the type of {corpus.path}")
    return stored

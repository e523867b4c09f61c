"""One utterance as people look at it: its spectrum over time, the true phonemes and the predicted ones."""

from pathlib import Path

import numpy as np

from phonedata.phonemes import PhonemeSet
from phonedata.raw.npy import NpyReader


def mel_spectrum(mfcc: np.ndarray, mel_bins: int = 40, lifter: float = 22.0) -> np.ndarray:
    """Smoothed log mel energies (T, mel_bins) from Kaldi MFCC (T, D): liftering undone, then the inverse DCT-II."""
    k = np.arange(mfcc.shape[1])
    cepstra = mfcc / (1 + lifter / 2 * np.sin(np.pi * k / lifter))
    basis = np.sqrt(2 / mel_bins) * np.cos(np.pi / mel_bins * (np.arange(mel_bins) + 0.5) * k[:, None])
    basis[0] = np.sqrt(1 / mel_bins)
    return cepstra @ basis


def draw_utterance(
    folder: Path, truth: np.ndarray, predicted: np.ndarray, phonemes: PhonemeSet, out: Path, most_frames: int = 400
) -> None:
    """Draw a typical utterance of `folder` (ID.npy files) to the file `out`.

    Of those of 0.6 to 1.2 times `most_frames` frames (of all, where there are none) it is the one whose frame accuracy
    is nearest to that of the whole. `truth` and `predicted` (N,) are the symbols of all frames, in order of ids.
    """
    from matplotlib.figure import Figure

    reader, first, choices, correct = NpyReader(), 0, [], truth == predicted
    for file in sorted(folder.glob("*.npy"), key=lambda file: file.stem):
        length = len(reader.load(str(file)))
        gap = abs(np.mean(correct[first : first + length]) - np.mean(correct))
        choices.append((not 0.6 * most_frames <= length <= 1.2 * most_frames, gap, file, first, length))
        first += length
    _, _, file, first, length = min(choices)
    mfcc = np.array(reader.load(str(file)))
    figure = Figure(figsize=(max(8.0, length / 22), 5.0), layout="constrained")
    spectrum, true_row, predicted_row = figure.subplots(3, 1, sharex=True, height_ratios=(6, 1, 1))
    extent = (0, length / 100, 0, 40)
    spectrum.imshow(mel_spectrum(mfcc).T, aspect="auto", origin="lower", extent=extent, cmap="magma")
    spectrum.set_ylabel("mel bin")
    right = correct[first : first + length]
    spectrum.set_title(f"{folder.parent.name}/{file.stem}: {np.mean(right):.1%} of its {length} frames right")
    for axes, symbols, name in ((true_row, truth, "true"), (predicted_row, predicted, "predicted")):
        labels = symbols[first : first + length]
        cuts = [0, *(np.flatnonzero(labels[1:] != labels[:-1]) + 1), length]
        for begin, end in zip(cuts, cuts[1:]):
            symbol = str(labels[begin])
            wrong = 1 - np.mean(right[begin:end])
            hue = phonemes.index(symbol) / len(phonemes)
            axes.axvspan(begin / 100, end / 100, color=(1 - 0.35 * hue, 0.75 + 0.2 * hue, 0.8), lw=0)
            if end - begin >= 3:
                style = {
                    "color": "#b91c1c" if wrong > 0.5 else "#0f172a",
                    "fontsize": 8,
                    "ha": "center",
                    "va": "center",
                }
                axes.text((begin + end) / 200, 0.5, symbol.strip("[]"), **style)
        axes.vlines([cut / 100 for cut in cuts], 0, 1, color="#334155", lw=0.4)
        axes.set(yticks=[], ylim=(0, 1))
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
    predicted_row.set_xlabel("seconds (red: most of the segment is wrong)")
    figure.savefig(out, dpi=110, metadata={"Software": None})

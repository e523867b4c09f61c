"""inspect: what a packed corpus holds, from its metadata; and a picture of one utterance with its phonemes."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import PhonedataError, SpecError
from .corpus import PackedCorpus, Partition


@dataclass(frozen=True)
class Inspection:
    """A packed corpus described; `str()` is for people, `to_dict()` for programs."""

    corpus: PackedCorpus

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: everything but digests of single files."""
        corpus, attributes = self.corpus, self.corpus.attributes
        wanted = ("format", "digest", "layout", "feature_dim", "frame_shift_ms", "dtype", "context", "cmvn", "frontend")
        return {
            "path": str(corpus.path),
            **{key: attributes.get(key) for key in wanted},
            "phonemes": list(corpus.phonemes.symbols),
            "left_out": attributes.get("left_out", []),
            "derived": attributes.get("derived", {}),
            "partitions": [self._partition(p) for p in corpus.partitions.values()],
        }

    def _partition(self, p: Partition) -> dict[str, Any]:
        histogram = None
        if p.label_histogram is not None:
            histogram = dict(zip(self.corpus.phonemes.symbols, p.label_histogram.tolist()))
        return {
            "name": p.name,
            "labelled": p.labelled,
            "utterances": p.num_utterances,
            "frames": p.num_frames,
            "hours": p.hours,
            "bytes": sum(entry["bytes"] for entry in p.attributes["files"].values()),
            "lengths": p.lengths,
            "label_histogram": histogram,
            "mean": p.mean.tolist(),
            "std": p.std.tolist(),
        }

    def __str__(self) -> str:
        table = self.to_dict()
        lines = [
            f"{table['path']}  format {table['format']}  {table['digest']}",
            f"layout {table['layout']}, {table['feature_dim']} coefficients {table['dtype']}, "
            f"frame shift {table['frame_shift_ms']:g} ms, cmvn {table['cmvn']['kind']}, context {table['context']}, "
            f"{len(table['phonemes'])} phonemes",
        ]
        if table["frontend"]:
            lines.append("front end " + ", ".join(f"{key} {value}" for key, value in table["frontend"].items()))
        lines += table["derived"].values()
        lines += ["", *self._partition_lines(), *self._label_lines()]
        left_out = table["left_out"]
        if left_out:
            lines += ["", f"left out: {len(left_out)}"]
            lines += [f"  {one['partition']}/{one['utterance']}: {one['reason']}" for one in left_out[:20]]
            if len(left_out) > 20:
                lines.append(f"  (and {len(left_out) - 20} more; --json lists all)")
        return "\n".join(lines)

    def _partition_lines(self) -> list[str]:
        """A line a partition; of the stored coefficients only their range, since all of them fill a screen."""
        lines = [
            f"{'partition':<20}{'utterances':>11}{'frames':>13}{'hours':>8}{'MB':>9}"
            f"  {'frames per utterance':<26}{'means':<15}deviations"
        ]
        for partition in self.corpus.partitions.values():
            row, lengths = self._partition(partition), partition.lengths
            spread = f"{lengths['min']} to {lengths['max']}, mean {lengths['mean']:.1f}"
            lines.append(
                f"{row['name']:<20}{row['utterances']:>11,}{row['frames']:>13,}{row['hours']:>8.2f}"
                f"{row['bytes'] / 1e6:>9.1f}  {spread:<26}{_range(partition.mean):<15}{_range(partition.std)}"
                f"{'' if partition.labelled else ', no labels'}"
            )
        return lines

    def _label_lines(self) -> list[str]:
        """One table of the labels of all partitions that have any."""
        labelled = {p.name: p.label_histogram for p in self.corpus.partitions.values() if p.label_histogram is not None}
        if not labelled:
            return []
        counts = np.sum(list(labelled.values()), axis=0)
        lines = ["", f"labels of {' + '.join(labelled)}, % of {counts.sum():,} frames"]
        shares = 100 * counts / counts.sum()
        cells = [f"{symbol:>6} {share:5.2f}" for symbol, share in zip(self.corpus.phonemes.symbols, shares)]
        lines += ["  ".join(cells[i : i + 8]) for i in range(0, min(len(cells), 64), 8)]
        if len(cells) > 64:
            lines.append(f"(and {len(cells) - 64} more; --json lists all)")
        return lines


def _range(values: np.ndarray) -> str:
    low, high = (round(float(value), 2) + 0.0 for value in (values.min(), values.max()))  # no "-0.00"
    return f"{low:.2f} to {high:.2f}" if low < high else f"{low:.2f}"


def inspect(packed: str | PathLike[str]) -> Inspection:
    """Describe the packed corpus at `packed` without reading its rows. Raises CorpusNotFound, FormatError."""
    corpus = PackedCorpus(packed)
    for partition in corpus.partitions.values():
        partition.utterance_end  # noqa: B018  what is said of lengths is held to them
    return Inspection(corpus)


def segments(labels: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs of equal labels (T,) as (class, first frame, end frame)."""
    cuts = np.flatnonzero(np.diff(labels)) + 1
    return [(int(labels[a]), int(a), int(b)) for a, b in zip([0, *cuts], [*cuts, len(labels)])]


def plot_utterance(
    corpus: PackedCorpus, file: str | PathLike[str], partition: str | None = None, utterance: str | None = None
) -> Path:
    """Draw one utterance's stored coefficients over time, its phonemes along the axis; returns the file.

    Without names: the first labelled partition, and its utterance nearest to four seconds. The suffix decides the
    format (.svg, .png, .pdf). Raises SpecError for names that are not there, PhonedataError if it cannot be written.
    """
    p = corpus[partition] if partition else next((p for p in corpus.partitions.values() if p.labelled), None)
    p = p or next(iter(corpus.partitions.values()))
    lengths = np.diff(p.utterance_end, prepend=0)
    if utterance is None:
        u = int(np.argmin(np.abs(lengths - 4000 / corpus.frame_shift_ms)))
    elif utterance in p.utterance_ids:
        u = p.utterance_ids.index(utterance)
    else:
        raise SpecError(f"{corpus.path}: partition {p.name} has no utterance {utterance!r}; e.g. {p.utterance_ids[0]}")
    start, length = int(p.utterance_start_row[u]), int(lengths[u])
    # The object interface: pyplot would choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(6.0, min(40.0, length / 28)), 4.2), layout="constrained")
    axes = figure.subplots()
    shift = corpus.frame_shift_ms / 1000
    features = np.asarray(p.features[start : start + length], np.float32).T
    limit = float(np.quantile(np.abs(features), 0.99)) or 1.0
    extent = (0, length * shift, -0.5, corpus.feature_dim - 0.5)
    picture = axes.imshow(
        features,
        extent=extent,
        interpolation="nearest",
        aspect="auto",
        origin="lower",
        cmap="RdBu_r",
        vmin=-limit,
        vmax=limit,
    )
    axes.set_ylabel("coefficient")
    axes.set_xlabel("seconds")
    name = f"{p.name}/{p.utterance_ids[u]}"
    axes.set_title(f"{name}: {length} frames, stored values ({corpus.cmvn['kind']} CMVN)", fontsize=10)
    figure.colorbar(picture, ax=axes, pad=0.01)
    labels = p.labels
    if labels is not None:
        top = axes.secondary_xaxis("top")
        runs = segments(np.asarray(labels[start : start + length]))
        top.set_xticks([(a + b) / 2 * shift for _, a, b in runs])
        top.set_xticklabels([corpus.phonemes.symbols[c] for c, _, _ in runs], fontsize=7, rotation=90)
        top.tick_params(length=0)
        axes.vlines([a * shift for _, a, _ in runs[1:]], *axes.get_ylim(), colors="black", linewidth=0.4)
    path = Path(file)
    try:
        # No date inside: the same corpus draws the same file.
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except ValueError as error:
        raise SpecError(f"{path}: {str(error).splitlines()[0]}; name it .svg, .png or .pdf") from None
    except OSError as error:
        raise PhonedataError(f"{path}: cannot be written ({error.strerror}); choose another place") from None
    return path

"""Results on stdout: JSON, or text for a terminal in aligned columns, at most 80 wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import PhonetrainError
from ..runs.experiment import ENDED, shown
from ..text import counted, percent, to_json


def print_result(told: Any, text: str, as_json: bool) -> None:
    """A command's result on stdout: `text` for people, or `told` as strict JSON."""
    print_text((to_json(told) if as_json else text) + "\n")


def print_text(text: str) -> None:
    """`text` on stdout; a full disk there is one sentence."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise PhonetrainError(f"the output could not be written ({error.strerror}); make room for it") from None


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table: the first `left` columns flush left, the others flush right."""
    columns = [[str(cell) for cell in column] for column in zip(header, *rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in zip(*columns, strict=True)
    ]


LAYERS = ("layer", "then", "inputs", "outputs", "dropout", "parameters")


def layer_rows(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows under LAYERS of layers as `FrameClassifier.layer_table` tells them."""
    return [
        (row["layer"], " ".join(filter(None, (row.get("norm"), row.get("activation")))), f"{row['inputs']:,}",
         f"{row['outputs']:,}", f"{row.get('dropout') or 0:g}", f"{row['parameters']:,}")
        for row in layers
    ]  # fmt: skip


class Shown(dict[str, Any]):
    """A result as a plain dict that a notebook shows as the command line does: as what `text` makes of it."""

    def __init__(self, result: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> None:
        super().__init__(result)
        self.text = text

    def __repr__(self) -> str:
        return self.text(self)


MOST_ROWS = 100  # phonemes that are all listed; of larger sets the worst are
WORST_ROWS = 20


def share_with_interval(share: float, interval: dict[str, Any] | None) -> str:
    """`68.25 %  (67.40 to 69.10)`."""
    bounds = "" if interval is None else f"  ({percent(interval['low'])} to {percent(interval['high'])})"
    return f"{percent(share)} %{bounds}"


def evaluation_text(scores: dict[str, Any]) -> str:
    """What `evaluate` returned, for people."""
    interval = scores["interval"]
    whom = "" if interval["drawn"] == "speakers" else ", for these speakers"
    lines = [
        f"{scores['run']}, {scores['checkpoint']} ({counted(scores['epochs_done'], 'epoch')}), {scores['weights']} "
        f"weights, {scores['precision']} on {scores['device']}",
        f"{scores['partition']}: {scores['utterances']:,} utterances, {scores['frames']:,} frames",
        *([f"{scores['folded_from']} phonemes folded into {len(scores['phonemes'])} by {scores['map']}: probabilities "
           "are added up, frames of what it leaves out are not scored"] if "map" in scores else []),
        *([f"each utterance heard as {len(scores['warps'])} lengths of vocal tract, those averaged that the net is "
           "surest of"] if "warps" in scores else []),
        *([] if scores["corpus_is_the_trained_one"] else
          [f"note: {scores['corpus']} is not the corpus this run was trained on (its digest differs)"]),
        "",
        f"frame accuracy    {share_with_interval(scores['accuracy'], interval)}    95 % of draws of "
        f"{interval['units']:,} {interval['drawn']}{whom}",
        f"frame error rate  {percent(scores['error_rate'])} %    (answering {scores['majority']['phoneme']} "
        f"everywhere: {percent(1 - scores['majority']['share'])} %)",
        f"loss              {scores['loss']:.4f} nats a frame",
    ]  # fmt: skip
    before = scores["in_training"]
    if before is not None and before["precision"] != scores["precision"]:
        lines.append(f"in training       {percent(before['accuracy'])} %    (in {before['precision']}: the "
                     "difference is rounding)")  # fmt: skip
    lines += [*_phone_lines(scores), *_calibration_lines(scores["calibration"]), "", *_group_tables(scores), ""]
    return "\n".join(lines + _phoneme_table(scores["phonemes"]) + _confused_table(scores["confused"]))


def _phone_lines(scores: dict[str, Any]) -> list[str]:
    lines = []
    for what, at in (("", scores), ("smoothed", scores["smoothed"])):
        if at is None:
            lines.append("smoothed          left out: it needs training labels and at most 128 classes")
            continue
        if what:
            lines.append(f"smoothed          {share_with_interval(at['accuracy'], at['interval'])}    of frames right; "
                         f"scale {at['scale']:g}, penalty {at['penalty']:g}, chosen on the other half")  # fmt: skip
        if (rate := at["phone_error_rate"]) is not None:
            lines.append(f"  phone errors    {share_with_interval(rate['rate'], rate['interval'])}    without silence")
        score = at["boundaries"]
        if score["f1"] is not None:
            lines.append(
                f"  boundaries      F1 {percent(score['f1'])} %, precision {percent(score['precision'])} %, recall "
                f"{percent(score['recall'])} %, R-value {percent(score['r_value'])} %"
            )
            lines.append(f"                  within 20 ms; the median of them is {score['off_by_ms']:g} ms off")
    return lines


def _calibration_lines(found: dict[str, Any]) -> list[str]:
    return [
        f"calibration       expected error {percent(found['expected_error'])} %; at temperature "
        f"{found['temperature']:g} the loss is {found['loss_with_temperature']:.4f}"
    ]


def _group_tables(scores: dict[str, Any]) -> list[str]:
    """Accuracy by class of sounds, by distance to a boundary, of the hardest speakers and utterances."""
    lines: list[str] = []
    if scores["sounds"] is None:
        lines.append("classes of sounds are left out: the phoneme set is neither ARPABET nor IPA")
    else:
        rows = [(row["class"], f"{row['frames']:,}", percent(row["accuracy"]), percent(row["within_class"]))
                for row in scores["sounds"]]  # fmt: skip
        lines += text_table(("class of sounds", "frames", "right %", "in class %"), rows)
    hardest = f"hardest of {counted(len(scores['by_speaker']), 'speaker')}"
    for title, kinds, column in (("frames to a boundary", distances(scores["by_distance"]), "frames_away"),
                                 (hardest, scores["by_speaker"][:5], "speaker"),
                                 ("worst utterances", scores["worst_utterances"], "utterance")):  # fmt: skip
        shares = [(kind[column], f"{kind['frames']:,}", percent(kind["accuracy"])) for kind in kinds]
        lines += ["", *text_table((title, "frames", "right %"), shares)]
    return lines


def distances(kinds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kinds of frames by their distance to a boundary, which is a text then: of the last one "5 or more"."""
    return [kind | {"frames_away": f"{kind['frames_away']}{' or more' * (kind is kinds[-1])}"} for kind in kinds]


def _phoneme_table(phonemes: list[dict[str, Any]]) -> list[str]:
    """Two columns side by side; of hundreds of classes those with the lowest recall."""
    note = []
    if len(phonemes) > MOST_ROWS:
        seen = [row for row in phonemes if row["recall"] is not None]
        note = [f"the {WORST_ROWS} of {len(phonemes)} phonemes with the lowest recall; --json has all"]
        phonemes = sorted(seen, key=lambda row: float(row["recall"]))[:WORST_ROWS]
    cells = [(row["phoneme"], f"{row['frames']:,}", percent(row["recall"]), percent(row["precision"]))
             for row in phonemes]  # fmt: skip
    half = -(-len(cells) // 2)
    header = ("phoneme", "frames", "recall %", "precision %")
    sides = [text_table(header, part) for part in (cells[:half], cells[half:]) if part]
    width = max(map(len, sides[0])) + 4
    others = [*(sides[1] if len(sides) > 1 else []), "", ""]
    return note + [f"{left:<{width}}{right}".rstrip() for left, right in zip(sides[0], others)]


def _confused_table(confused: list[dict[str, Any]]) -> list[str]:
    if not confused:
        return []
    rows = [
        (f"{row['phoneme']} heard as {row['heard_as']}", f"{row['frames']:,} frames",
         f"{percent(row['share_of_phoneme'])} % of {row['phoneme']}",
         f"{percent(row['share_of_errors'])} % of all errors")
        for row in confused
    ]  # fmt: skip
    return ["", "most confused", *text_table(rows[0], rows[1:])]


METRIC_NAMES = {
    "accuracy": "frames right",
    "smoothed_accuracy": "smoothed",
    "phone_error_rate": "phone errors",
    "smoothed_phone_error_rate": "smoothed",
    "loss": "loss, nats",
}
COMPARED_PHONEMES = 12  # --json has all


def metric_value(metric: str, value: float | None, sign: bool = False) -> str:
    """A metric as people read it: shares in percent, a loss in nats; None as a dash."""
    if value is None:
        return "–"
    return f"{value:{'+' * sign}.4f}" if metric == "loss" else f"{100 * value:{'+' * sign}.2f}"


def comparison_text(result: dict[str, Any]) -> str:
    """What `compare` returned, for people."""
    groups, metrics = result["groups"], result["metrics"]
    several = any(len(group["runs"]) > 1 for group in groups)
    seeds = "seeds and " * several
    lines = [
        f"{result['partition']}: {result['utterances']:,} utterances, {result['frames']:,} frames, "
        f"{result['precision']}; shares in %",
        f"in brackets 95 % of {result['draws']:,} draws of {seeds}{result['units']:,} {result['drawn']}",
    ]
    for group in groups:
        changed = [f"  {key} {shown(old)} -> {shown(new)}" for key, (old, new) in group["changed"].items()]
        lines += ["", group["name"], *changed]
        if len(group["runs"]) > 1:
            header = ("seed", *(METRIC_NAMES[metric] for metric in metrics))
            rows = [(f"{run['seed']}  {run['run']}", *(metric_value(metric, run[metric]) for metric in metrics))
                    for run in group["runs"]]  # fmt: skip
            lines += [f"  {line}" for line in text_table(header, rows)]
        rows = []
        for metric in metrics:
            told = group[metric]
            spread = "" if told["spread"] is None else f"+- {metric_value(metric, told['spread'])} over seeds"
            rows.append((METRIC_NAMES[metric], metric_value(metric, told["mean"]), _bounds(metric, told), spread))
        lines += [f"  {line}" for line in text_table(rows[0], rows[1:])]
        lines += [f"  note: {run['run']} has not ended: its status is {run['status']}" for run in group["runs"]
                  if run["status"] not in ENDED]  # fmt: skip
    for difference in result["differences"]:
        lines += ["", *_difference_lines(difference, metrics)]
    if result["differences"] and any(len(group["runs"]) == 1 for group in groups):
        lines += ["", "Of one seed a group nobody knows what another seed would give: train more, and give them all."]
    return "\n".join(lines)


def _bounds(metric: str, told: dict[str, Any], sign: bool = False) -> str:
    if told["low"] is None:
        return ""
    return f"({metric_value(metric, told['low'], sign)} to {metric_value(metric, told['high'], sign)})"


def _difference_lines(difference: dict[str, Any], metrics: Sequence[str]) -> list[str]:
    rows: list[tuple[str, ...]]
    lines = [f"{difference['of']} against {difference['from']}", f"  {verdict_of(difference)}"]
    rows = [
        (METRIC_NAMES[metric], metric_value(metric, difference[metric]["difference"], True),
         _bounds(metric, difference[metric], True), f"p {difference[metric]['p']:.3f}")
        for metric in metrics
    ]  # fmt: skip
    lines += [f"  {line}" for line in text_table(rows[0], rows[1:])]
    places = {"phoneme": difference["by_phoneme"], "speaker": difference["by_speaker"],
              "frames_away": distances(difference["by_distance"])}  # fmt: skip
    lines += ["", "  where it comes from: points of all frames, which add up to the difference"]
    for column, kinds in places.items():
        shown_kinds = kinds[:COMPARED_PHONEMES] if column != "frames_away" else kinds
        what = "frames to a boundary" if column == "frames_away" else column
        left = len(kinds) - len(shown_kinds)
        rows = [
            (row[column], f"{row['frames']:,}", percent(row["accuracy_before"]), percent(row["accuracy"]),
             metric_value("accuracy", row["points"], True), _bounds("accuracy", row, True))
            for row in shown_kinds
        ]  # fmt: skip
        header = (what, "frames", "before %", "now %", "points", "")
        lines += [f"  {line}" for line in text_table(header, rows)]
        lines += [f"  and {left:,} more, which --json has"] * (left > 0) + [""]
    return lines[:-1]


def verdict_of(difference: dict[str, Any]) -> str:
    """One sentence on whether the accuracy differs."""
    told = difference["accuracy"]
    if told["low"] > 0 or told["high"] < 0:
        word = "better" if told["difference"] > 0 else "worse"
        return f"{word} by {100 * abs(told['difference']):.2f} points of frames: 0 is outside the interval"
    return "no difference is shown: 0 is inside the interval; more utterances or seeds would tell finer ones"


SHOWN_SUSPECTS = 20


def suspects_text(result: dict[str, Any]) -> str:
    """What `suspects` returned, for people."""
    utterances, segments = result["utterances"], result["segments"]
    rows: list[tuple[str, ...]]
    lines = [
        f"{result['partition']}: {len(utterances):,} of {result['utterances_checked']:,} utterances and "
        f"{len(segments):,} of {result['segments_checked']:,} segments are listed",
    ]
    if result["folds"] is None:
        lines.append(
            "the net was asked about its own training data, of which it may remember some; --folds 3 asks nets "
            "that never saw it"
        )
    if utterances:
        rows = [(row["utterance"], f"{row['score']:.2f}", row["reason"]) for row in utterances[:SHOWN_SUSPECTS]]
        lines += ["", *text_table(("utterance", "nats", "why"), rows, left=3)]
    if segments:
        rows = [(row["utterance"], f"{row['start']:.2f}", f"{row['end']:.2f}", row["given"], row["heard"],
                 f"{row['score']:.2f}") for row in segments[:SHOWN_SUSPECTS]]  # fmt: skip
        lines += ["", *text_table(("segment of", "from s", "to s", "given", "heard", "nats"), rows)]
    rows = [(row["phoneme"], f"{row['segments']:,}", f"{row['sure_of_another']:,}",
             percent(row["sure_of_another"] / row["segments"]), row["most_heard_as"] or "")
            for row in result["classes"][:10]]  # fmt: skip
    lines += ["", *text_table(("phoneme", "segments", "surely another", "%", "mostly"), rows)]
    return "\n".join([*lines, "", result["folder"]])

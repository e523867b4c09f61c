"""Results on stdout: JSON, or text for a terminal in aligned columns, at most 80 wide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import PhonetrainError
from ..text import counted, percent, to_json


def print_result(told: Any, text: str, as_json: bool) -> None:
    """A command's result on stdout: `text` for people, or `told` as strict JSON."""
    try:
        print(to_json(told) if as_json else text, flush=True)
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


class Evaluation(dict[str, Any]):
    """What `evaluate` returns: a plain dict that a notebook shows as the command line does."""

    def __repr__(self) -> str:
        return evaluation_text(self)


def evaluation_text(told: dict[str, Any]) -> str:
    """What `evaluate` returned, for people."""
    lines = [
        f"{told['run']}, {told['checkpoint']} ({counted(told['epochs_done'], 'epoch')}), {told['weights']} weights, "
        f"{told['precision']} on {told['device']}",
        f"{told['partition']}: {told['utterances']:,} utterances, {told['frames']:,} frames",
        "",
        f"frame accuracy    {percent(told['accuracy'])} %     (answering {told['majority']['phoneme']} everywhere: "
        f"{percent(told['majority']['share'])} %)",
        f"frame error rate  {percent(told['error_rate'])} %",
        f"loss              {told['loss']:.4f} nats a frame",
        "",
    ]
    before = told["in_training"]
    if before is not None and before["precision"] != told["precision"]:
        lines.insert(
            -1,
            f"in training       {percent(before['accuracy'])} %     (in {before['precision']}: the "
            "difference is rounding)",
        )
    if not told["corpus_is_the_trained_one"]:
        lines.insert(2, f"note: {told['corpus']} is not the corpus this run was trained on (its digest differs)")
    half = -(-len(told["phonemes"]) // 2)
    cells = [
        (each["phoneme"], f"{each['frames']:,}", percent(each["recall"]), percent(each["precision"]))
        for each in told["phonemes"]
    ]
    header = ("phoneme", "frames", "recall %", "precision %")
    sides = [text_table(header, part) for part in (cells[:half], cells[half:]) if part]
    width = max(map(len, sides[0])) + 4
    for place, line in enumerate(sides[0]):
        other = sides[1][place] if len(sides) > 1 and place < len(sides[1]) else ""
        lines.append(f"{line:<{width}}{other}".rstrip())
    if told["confused"]:
        lines += ["", "most confused"]
        rows = [
            (f"{each['phoneme']} heard as {each['heard_as']}", f"{each['frames']:,} frames",
             f"{percent(each['share_of_phoneme'])} % of {each['phoneme']}",
             f"{percent(each['share_of_errors'])} % of all errors")
            for each in told["confused"]
        ]  # fmt: skip
        lines += text_table(rows[0], rows[1:])
    return "\n".join(lines)

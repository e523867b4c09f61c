"""The page of several runs: a table that compares them, what differs, curves, commands that train them again."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phonedata import PhonedataError

from ..display import html as page
from ..display.plots import as_svg, draw_runs
from ..errors import PhonetrainError
from ..results.compare import compare
from ..runs.directory import Run
from ..runs.experiment import changes, experiment, group_name, group_runs, shown
from ..runs.explain import life
from ..runs.next_commands import train_again
from ..runs.verdict import verdict
from ..text import clock, percent, short
from .summary import count, number, summary


def several_runs(runs: Sequence[Run], table: Table | None = None) -> str:
    """The page of several runs, the baseline first: the table, their curves over each other, and the life of each."""
    table = table or Table.of(runs)
    curves = as_svg(draw_runs(runs), "Dev loss and accuracy of all runs")
    pooled = [page.paragraph(
        "Of runs that differ only in the seed the mean is drawn, with one standard deviation on either side, at "
        "epochs that all of them have.", "soft",
    )] * (len(table.names) < len(runs))  # fmt: skip
    sections = [
        page.section("Comparison", page.table(HEADER, table.rows, table.best, words=1),
                     *(page.paragraph(line, "soft") for line in table.notes)),
        page.section("What differs", page.table(("setting", *table.names), table.settings, words=1 + len(table.names))),
        page.section("Learning curves", page.wide(curves), *pooled),
        page.section("Train them again", *map(page.verbatim, table.commands)),
    ]  # fmt: skip
    for run in runs:
        judged = page.paragraph(verdict(run))
        sections.append(page.section(run.name, judged, page.life(life(run))))
    return page.page(f"{len(runs)} runs", ", ".join(run.name for run in runs), sections)


HEADER = ("run", "dev %", "95 %", "seeds +-", "against the first", "95 %", "p", "train %", "dev loss", "parameters",
          "epochs", "frames seen", "time")  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Experiments as rows, the baseline first. best: the row with the highest dev accuracy. settings: those that
    differ, with the value of each row; names: of the rows; commands: that train each run again."""

    rows: list[list[str]]
    best: int | None
    notes: list[str]
    settings: list[tuple[str, ...]]
    names: list[str]
    commands: list[str]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Table:
        """Scores in fp32 on the same utterances where all runs can be compared, else all as training made them."""
        groups = group_runs(runs)
        told: dict[str, Any] | None = None
        notes = ["Frames seen counts every training frame as often as it was used; times are sums over epochs."]
        try:
            print(f"comparing {len(runs)} runs on their dev partition, in fp32", file=sys.stderr)
            told = compare(runs)
        except (PhonetrainError, PhonedataError) as error:
            notes += [f"Accuracies are those of training, each in its own precision: {error}."]
        rows, scores = [], []
        for place, group in enumerate(groups):
            row, score = cls._row(group, place, told)
            rows.append(row)
            scores.append(score)
        if told is not None:
            drawn = f"{told['units']:,} {told['drawn']}"
            notes += [
                f"{told['partition']}: {told['utterances']:,} utterances, {told['frames']:,} frames, fp32. 95 % means "
                f"of {told['draws']:,} draws of {drawn}, and of seeds where there are several; p is two-sided.",
            ]
        if any(len(group) == 1 for group in groups):
            notes += ["Of one seed nobody knows what another would give."]
        tables = [experiment(group[0]) for group in groups]
        keys = dict.fromkeys(key for table in tables for key, _, _ in changes(tables[0], table))
        settings = [(key, *(shown(table.get(key)) for table in tables)) for key in keys]
        best = int(np.argmax(scores)) if max(scores) >= 0 else None
        return cls(
            rows,
            best,
            notes,
            settings,
            [group_name(group[0].name, len(group)) for group in groups],
            [train_again(run) for run in runs],
        )

    @staticmethod
    def _row(group: Sequence[Run], place: int, told: dict[str, Any] | None) -> tuple[list[str], float]:
        """Cells of HEADER, and the accuracy; means over the group's runs."""
        each = [summary(run) for run in group]

        def mean(name: str) -> float | None:
            values = [numbers[name] for numbers in each if numbers[name] is not None]
            return float(np.mean(values)) if values else None

        if told is None:
            values = [numbers["best_accuracy"] for numbers in each if numbers["best_accuracy"] is not None]
            dev, around, difference, loss = mean("best_accuracy"), "", ["", "", ""], mean("best_loss")
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        else:
            found = told["groups"][place]
            dev, loss, spread = found["accuracy"]["mean"], found["loss"]["mean"], found["accuracy"]["spread"]
            around = f"{percent(found['accuracy']['low'])} to {percent(found['accuracy']['high'])}"
            difference = ["", "", ""]
            if place:
                gained = told["differences"][place - 1]["accuracy"]
                bounds = f"{100 * gained['low']:+.2f} to {100 * gained['high']:+.2f}"
                difference = [f"{100 * gained['difference']:+.2f}", bounds, f"{gained['p']:.3f}"]
        epochs = sorted({numbers["epochs"] for numbers in each})
        row = [
            group_name(group[0].name, len(group)), percent(dev), around, "" if spread is None else percent(spread),
            *difference, percent(mean("train_accuracy")), number(loss), count(each[0]["parameters"]),
            " to ".join(map(str, dict.fromkeys((epochs[0], epochs[-1])))),
            short(mean("frames") or 0), clock(mean("seconds")),
        ]  # fmt: skip
        return row, -1.0 if dev is None else dev

    def markdown(self) -> str:
        """The table as Markdown, with what differs and the conditions."""
        differs = page.markdown_table(("setting", *self.names), self.settings, words=1 + len(self.names))
        again = "\n\n".join(textwrap.indent(lines, "    ") for lines in self.commands)
        return f"{page.markdown_table(HEADER, self.rows)}\n{differs}\n" + "\n".join(self.notes) + f"\n\n{again}\n"

"""The page of one run, section by section."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from phonedata import PhonedataError

from ..config.stages import flattened
from ..config.toml import read_text
from ..display import html as page
from ..display.plots import as_svg, draw_confusion, draw_run, draw_utterance
from ..display.tables import LAYERS, distances, layer_rows
from ..errors import PhonetrainError
from ..results.posteriors import utterance_posteriors
from ..results.sounds import ORDER, sound_classes
from ..results.trained import open_trained
from ..runs.directory import Run
from ..runs.experiment import shown
from ..runs.explain import life as life_of
from ..runs.history import where_scored
from ..runs.next_commands import train_again
from ..runs.verdict import verdict
from ..text import clock, counted, percent, short
from .summary import Scores, best_evaluation, count, number, summary

MOST_DRAWN = 100  # classes of a confusion matrix that can still be read

MOST_SECONDS = 6  # of the utterance that is drawn


def one_run(run: Run) -> str:
    """The page of one run."""
    numbers, scores = summary(run), best_evaluation(run)
    missing = [page.paragraph(scores)] if isinstance(scores, str) else None
    sections = [page.section(title, *(missing if reads and missing else content(run, scores)))
                for title, content, reads in SECTIONS]  # fmt: skip
    subtitle = f"phonetrain run, recipe {numbers['recipe']}, {numbers['status']}"
    return page.page(run.name, subtitle, [headline(numbers, scores), *sections])


def headline(told: dict[str, Any], scores: Scores) -> str:
    pairs = []
    if isinstance(scores, dict):
        pairs += [
            (
                f"{percent(scores['accuracy'])} %",
                f"frame accuracy on {scores['partition']}, fp32; 95 %: "
                f"{percent(scores['interval']['low'])} to {percent(scores['interval']['high'])}",
            ),
            (f"{percent(scores['error_rate'])} %", "frame error rate"),
            (number(scores["loss"]), "loss, nats a frame"),
            (f"{percent(scores['majority']['share'])} %", f"answering {scores['majority']['phoneme']} everywhere"),
        ]
    elif told["best_accuracy"] is not None:
        where = f"best dev frame accuracy, {told['best_in']}, {told['precision'] or 'precision not recorded'}"
        pairs.append((f"{percent(told['best_accuracy'])} %", where))
    pairs += [
        (count(told["parameters"]), "parameters"),
        (str(told["epochs"]), f"epoch{'s' * (told['epochs'] != 1)}, {short(told['frames'])} frames seen"),
        (clock(told["seconds"]), "training time, without scoring"),
    ]
    if told["frames_per_second"]:
        how = told["precision"] or "precision not recorded"
        pairs.append((f"{short(told['frames_per_second'])}/s", f"frames, median, {how}"))
    return page.numbers(pairs)


def curves(run: Run, scores: Scores) -> list[str]:
    return [
        page.wide(as_svg(draw_run(run), f"Learning curves of {run.name}")),
        page.paragraph("Train numbers are means since the log line before, with dropout and masks on; dev numbers are "
                       "of the scored weights after each epoch, in the training precision. Dashed lines are resumes "
                       "and changes.", "soft"),
    ]  # fmt: skip


def confusions(run: Run, scores: dict[str, Any]) -> list[str]:
    symbols = [row["phoneme"] for row in scores["phonemes"]]
    pairs = [(f"{each['phoneme']} heard as {each['heard_as']}", f"{each['frames']:,}",
              f"{percent(each['share_of_phoneme'])} %", f"{percent(each['share_of_errors'])} %")
             for each in scores["confused"]]  # fmt: skip
    conditions = (
        f"{scores['partition']}: {scores['utterances']:,} utterances, {scores['frames']:,} frames, every frame once; "
        f"{scores['checkpoint']} after {counted(scores['epochs_done'], 'epoch')}, {scores['weights']} weights, fp32 on "
        f"{scores['device']}; corpus digest {scores['corpus_digest']}."
    )
    if len(symbols) > MOST_DRAWN:
        picture = page.paragraph(f"The matrix of {len(symbols)} classes is left out: it could not be read; "
                                 "`phonetrain evaluate --json` has it.", "soft")  # fmt: skip
    else:
        classes = sound_classes(symbols)
        order = sorted(range(len(symbols)), key=lambda place: ORDER.index(classes[place]) if classes else place)
        counts = np.array(scores["confusion"])[np.ix_(order, order)]
        picture = page.wide(as_svg(draw_confusion(counts, [symbols[place] for place in order]), "Confusion matrix"))
        if classes:
            pairs_of = (
                "Phonemes are sorted by class: vowels, approximants, nasals, fricatives, affricates, stops, silence."
            )
            picture += page.paragraph(pairs_of, "soft")
    header = ("most confused", "frames", "of the phoneme", "of all errors")
    return [page.paragraph(conditions, "soft"), picture, page.table(header, pairs)]


def phonemes(run: Run, scores: dict[str, Any]) -> list[str]:
    rows = [(row["phoneme"], f"{row['frames']:,}", page.share_bar(row["recall"]), page.share_bar(row["precision"]))
            for row in scores["phonemes"]]  # fmt: skip
    half = -(-len(rows) // 2)
    header = ("phoneme", "frames", "recall", "precision")
    tables = [page.table(header, part) for part in (rows[:half], rows[half:]) if part]
    return [f'<div class="columns">{"".join(tables)}</div>']


def where(run: Run, scores: dict[str, Any]) -> list[str]:
    """Accuracy by class of sounds, distance to a boundary and speaker; the worst utterances."""

    def rows(kinds: list[dict[str, Any]], column: str) -> list[tuple[object, ...]]:
        return [(kind[column], f"{kind['frames']:,}", page.share_bar(kind["accuracy"])) for kind in kinds]

    tables = [
        page.table(("frames to a boundary", "frames", "right"), rows(distances(scores["by_distance"]), "frames_away")),
        page.table(("speaker, hardest first", "frames", "right"), rows(scores["by_speaker"][:20], "speaker")),
        page.table(("worst utterances", "frames", "right"), rows(scores["worst_utterances"], "utterance")),
    ]
    if scores["sounds"] is not None:
        tables.insert(0, page.table(("class of sounds", "frames", "right"), rows(scores["sounds"], "class")))
    return [f'<div class="columns">{"".join(tables)}</div>']


def worst(run: Run, scores: dict[str, Any]) -> list[str]:
    """The worst utterance: its features, what was true, what was said, and the posteriors."""
    name = scores["worst_utterances"][0]["utterance"]
    try:
        net = open_trained(run, scores["checkpoint"])
        features, labels, rows = utterance_posteriors(net, scores["partition"], name)
    except (PhonetrainError, PhonedataError) as error:
        print(f"warning: the worst utterance could not be drawn: {error}", file=sys.stderr)
        return [page.paragraph(f"It could not be drawn: {error}")]
    symbols, shift = net.corpus.phonemes.symbols, net.corpus.frame_shift_ms
    shown_frames = slice(0, int(MOST_SECONDS * 1000 / shift))
    figure = draw_utterance(features[shown_frames], labels[shown_frames], rows[shown_frames], symbols, shift)
    words = (
        f"{name}: {100 * scores['worst_utterances'][0]['accuracy']:.2f} % of {len(labels):,} frames are right"
        + f"; its first {MOST_SECONDS} seconds" * (len(labels) * shift > MOST_SECONDS * 1000)
        + ". What was said wrongly for most of its length is coloured."
    )
    return [page.paragraph(words, "soft"), page.wide(as_svg(figure, f"The worst utterance, {name}"))]


def next_step(run: Run, scores: Scores) -> list[str]:
    judged = verdict(run)
    return [page.paragraph(judged if judged.command is None else f"{judged.sentence[0].upper()}{judged.sentence[1:]}."),
            *([] if judged.command is None else [page.verbatim(f"{judged.command}    # {judged.does}")])]  # fmt: skip


def again(run: Run, scores: Scores) -> list[str]:
    return [page.verbatim(train_again(run))]


def epochs(run: Run, scores: Scores) -> list[str]:
    lines = run.scores()
    best = [index for index, line in enumerate(lines) if line.get("best")]
    rows = [
        (where_scored(line).removeprefix("epoch "), number(line.get("train_loss")), percent(line.get("train_accuracy")),
         number(line.get("dev_loss")), percent(line.get("dev_accuracy")), f"{line['lr']:.2e}" if "lr" in line else "–",
         clock(line["seconds"]) if "seconds" in line else "–", line.get("segment", 0) + 1)
        for line in lines
    ]  # fmt: skip
    header = ("epoch", "train loss", "train %", "dev loss", "dev %", "learning rate", "time", "part")
    return [page.table(header, rows, best[-1] if best else None)]


def built(run: Run, scores: Scores) -> list[str]:
    settings = run.read_json(run.built_path)
    layers = (settings.get("model") or {}).pop("layers", None)
    parts = [page.paragraph("Read from the live objects when training began, not from the settings.", "soft")]
    if layers:
        parts.append(page.table(LAYERS, layer_rows(layers), words=2))
    pairs = [(key, shown(value)) for key, value in flattened(settings)]
    return [*parts, page.table(("what", "value"), pairs, words=2)]


def configuration(run: Run, scores: Scores) -> list[str]:
    return [page.verbatim(read_text(run.config_path))]


def environment(run: Run, scores: Scores) -> list[str]:
    return [page.verbatim(json.dumps(run.read_json(run.environment_path), indent=2))]


def life(run: Run, scores: Scores) -> list[str]:
    return [page.life(life_of(run))]


# Title, what makes it, and whether it is of scores: where there are none it says why.
SECTIONS: list[tuple[str, Callable[[Run, Any], list[str]], bool]] = [
    ("Verdict", next_step, False),
    ("Learning curves", curves, False),
    ("What happened", life, False),
    ("Epochs", epochs, False),
    ("Confusions", confusions, True),
    ("Phonemes", phonemes, True),
    ("Where it is right", where, True),
    ("The worst utterance", worst, True),
    ("Train it again", again, False),
    ("What was really built", built, False),
    ("Settings", configuration, False),
    ("Environment", environment, False),
]

"""HTML for reports: one file, without scripts or outside links, for screens, phones, dark mode and print."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1e293b; --soft: #5b6779; --line: #e2e8f0; --card: #f8fafc;
  --mark: #c2410c; --train: #8da0b6 }
@media (prefers-color-scheme: dark) { :root { --paper: #12171f; --ink: #e2e8f0; --soft: #9aa7b8; --line: #334155;
  --card: #1c232e; --mark: #fb923c; --train: #7b8ea6 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .2rem }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem }
p { margin: .4rem 0 }
.soft { color: var(--soft) }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .8rem 1rem;
  font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; white-space: pre-wrap; overflow-wrap: anywhere }
svg, img { max-width: 100%; height: auto; display: block }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .6rem; margin: 1.2rem 0 }
.numbers div { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .5rem .8rem }
.numbers b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums }
.numbers span { color: var(--soft); font-size: .82rem }
.wide { overflow-x: auto }
.wide svg { min-width: 44rem }
h1, p, li, td { overflow-wrap: anywhere }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .86rem }
th, td { padding: .22rem .9rem .22rem 0; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top }
th { color: var(--soft); font-weight: 600; white-space: nowrap }
td { white-space: nowrap }
.text { text-align: left }
td.text + td.text { white-space: normal; overflow-wrap: anywhere; min-width: 12rem }
tr.best td { color: var(--mark); font-weight: 600 }
.bar { display: inline-block; width: 4.5rem; margin-left: .5rem; text-align: left }
.bar i { display: inline-block; height: .55rem; background: var(--train); border-radius: 2px }
.columns { display: flex; flex-wrap: wrap; gap: 0 2.5rem }
ol.life { padding-left: 1.2rem }
ol.life li { margin: .25rem 0 }
@media (max-width: 30rem) { body { padding: 1rem .8rem 3rem } .bar { display: none } }
@media print { body { max-width: none; padding: 0 } h2 { break-after: avoid } svg, img, tr { break-inside: avoid } }
"""


@dataclass(frozen=True)
class Raw:
    """Markup that is already HTML."""

    markup: str


def text(value: object) -> str:
    return value.markup if isinstance(value, Raw) else html.escape(str(value))


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """The whole file. `sections` are HTML."""
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>\n'
        f'<h1>{text(title)}</h1><p class="soft">{text(subtitle)}</p>\n' + "\n".join(sections) + "\n</body></html>\n"
    )


def section(title: str, *content: str) -> str:
    return f"<h2>{text(title)}</h2>\n" + "\n".join(content)


def paragraph(words: object, kind: str = "") -> str:
    return f'<p class="{kind}">{text(words)}</p>' if kind else f"<p>{text(words)}</p>"


def numbers(pairs: Sequence[tuple[str, str]]) -> str:
    """A row of large numbers, each (value, what it is)."""
    return '<div class="numbers">' + "".join(
        f"<div><b>{text(value)}</b><span>{text(what)}</span></div>" for value, what in pairs
    ) + "</div>"  # fmt: skip


def table(header: Sequence[str], rows: Sequence[Sequence[object]], best: int | None = None, words: int = 1) -> str:
    """A table; the first `words` columns are text, the rest numbers; row `best` is marked."""

    def cells(values: Sequence[object], tag: str) -> str:
        return "".join(
            f'<{tag} class="text">{text(value)}</{tag}>' if place < words else f"<{tag}>{text(value)}</{tag}>"
            for place, value in enumerate(values)
        )

    body = "".join(
        f"<tr{' class=best' if place == best else ''}>{cells(row, 'td')}</tr>\n" for place, row in enumerate(rows)
    )
    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>"
    return wide(f"<table>{head}<tbody>\n{body}</tbody></table>")


def share_bar(share: float | None) -> Raw:
    """A share of 0 to 1 as a percentage with a bar of that length."""
    if share is None:
        return Raw("–")
    return Raw(f'{100 * share:.1f} %<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>')


def life(sentences: Sequence[str]) -> str:
    return '<ol class="life">' + "".join(f"<li>{text(sentence)}</li>" for sentence in sentences) + "</ol>"


def wide(markup: str) -> str:
    """A picture or table that keeps a readable size and scrolls by itself where the page is narrower."""
    return f'<div class="wide">{markup}</div>'


def verbatim(words: str) -> str:
    return f"<pre>{text(words)}</pre>"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]], words: int = 1) -> str:
    """`table` in Markdown."""

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = "|" + "|".join("---" if place < words else "---:" for place in range(len(header))) + "|"
    return "\n".join([line(header), rule, *map(line, rows)]) + "\n"

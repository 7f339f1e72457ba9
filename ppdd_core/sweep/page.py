"""A report as a list of blocks, and the two ways to write it: Markdown with pictures beside it, one HTML file with all.

Whatever comes from outside (names of variants, reasons, a command) is text: escaped in both. The page loads nothing.
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences; `code` sets them as what was typed."""

    text: str
    code: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a head. `bold` names rows that are ours."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: frozenset[int] = frozenset()
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot: SVG text, and the name of its file."""

    name: str
    svg: str
    caption: str


@dataclass(frozen=True, slots=True)
class Picture:
    """A PNG, and the name of its file."""

    name: str
    png: bytes
    caption: str


@dataclass(frozen=True, slots=True)
class Strip:
    """Pictures beside each other."""

    caption: str
    pictures: Sequence[Picture]


Block = Heading | Paragraph | Table | Drawing | Strip

LONG = 60  # letters of a cell that is wrapped
_FIGURE = re.compile(r"[\d–-]")

STYLE = """
:root { color-scheme: light dark; --ink: #1d252d; --soft: #55606c; --line: #d8dee4; --paper: #fff; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dbe2ea; --soft: #9aa6b2; --line: #333c46; --paper: #171c22; --band: #1e252d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 46rem; } p.command { font-family: ui-monospace, monospace; font-size: .85rem; padding: .7rem .9rem;
  background: var(--band); border-radius: 6px; overflow-wrap: anywhere; max-width: none; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { padding: .35rem 1rem .35rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); text-align: left;
  white-space: normal; min-width: 8rem; }
.text { text-align: left; } td.long { white-space: normal; min-width: 16rem; overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; } tr.ours td { font-weight: 600; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: start; } .tables .scroll { max-width: 100%; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: .5rem 2rem; }
figure { margin: 1rem 0; max-width: 30rem; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; } figcaption { color: var(--soft); font-size: .85rem; }
.strip { display: flex; gap: 1rem; overflow-x: auto; padding-bottom: .5rem; } .strip figure { flex: none; margin: 0; }
.strip img { display: block; height: 15rem; width: auto; image-rendering: pixelated; }
h3 { font-size: .95rem; margin: 1.4rem 0 .4rem; }
""".strip()


def to_markdown(title: str, blocks: Sequence[Block], *, folder: str) -> str:
    """Return the report as Markdown, with pictures in `folder` beside it."""
    lines = [f"# {_md(title)}", ""]
    for block in blocks:
        lines += [*_markdown(block, folder), ""]
    return "\n".join(lines).rstrip() + "\n"


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """Return the report as one page that needs nothing beside it."""
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        "<main>",
        f"<h1>{escape(title)}</h1>",
    ]
    for kind, alike in itertools.groupby(
        blocks, type
    ):  # those that follow each other stand side by side
        side_by_side = {Drawing: "plots", Table: "tables"}.get(kind)
        inside = [line for block in alike for line in _html(block)]
        parts += [f'<div class="{side_by_side}">', *inside, "</div>"] if side_by_side else inside
    return "\n".join([*parts, "</main>", "</html>"]) + "\n"


def files(blocks: Sequence[Block]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the pictures that the Markdown report shows."""
    for block in blocks:
        if isinstance(block, Drawing):
            yield f"{block.name}.svg", block.svg.encode()
        elif isinstance(block, Strip):
            for picture in block.pictures:
                yield f"{picture.name}.png", picture.png


def _markdown(block: Block, folder: str) -> list[str]:
    match block:
        case Heading(text):
            return [f"## {_md(text)}"]
        case Paragraph(text, code):
            return [f"`{text.replace('`', chr(39))}`" if code else _md(text)]
        case Table():
            rows = [
                [f"**{_md(cell)}**" if number in block.bold and cell else _md(cell) for cell in row]
                for number, row in enumerate(block.rows)
            ]
            head = [_md(name) for name in block.head]
            lines = [f"**{_md(block.caption)}**", ""] if block.caption else []
            lines += ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
            return lines
        case Drawing():
            return [f"![{_md(block.caption)}]({folder}/{block.name}.svg)"]
        case Strip():
            shown = [f"![{_md(one.caption)}]({folder}/{one.name}.png)" for one in block.pictures]
            return [f"{_md(block.caption)}:", "", " ".join(shown)]


def _html(block: Block) -> list[str]:
    match block:
        case Heading(text):
            return [f"<h2>{escape(text)}</h2>"]
        case Paragraph(text, code):
            return [f"<p{' class=command' if code else ''}>{escape(text)}</p>"]
        case Table():
            return _html_table(block)
        case Drawing():
            caption = f"<figcaption>{escape(block.caption)}</figcaption>"
            return [f"<figure>{block.svg}{caption}</figure>"]
        case Strip():
            shown = [
                f'<figure><img alt="{escape(f"{block.caption}, {one.caption}")}" '
                f'src="data:image/png;base64,{base64.b64encode(one.png).decode()}">'
                f"<figcaption>{escape(one.caption)}</figcaption></figure>"
                for one in block.pictures
            ]
            return [f"<h3>{escape(block.caption)}</h3>", '<div class="strip">', *shown, "</div>"]


def _html_table(table: Table) -> list[str]:
    words = [
        any(row[place] for row in table.rows)
        and not any(_FIGURE.match(row[place]) for row in table.rows)
        for place in range(len(table.head))
    ]
    lines = ['<div class="scroll" tabindex="0"><table>']
    if table.caption:
        lines.append(f"<caption>{escape(table.caption)}</caption>")
    head = "".join(
        f"<th scope=col{' class=text' if word else ''}>{escape(name)}</th>"
        for name, word in zip(table.head, words, strict=True)
    )
    lines += [f"<thead><tr>{head}</tr></thead>", "<tbody>"]
    for number, row in enumerate(table.rows):
        cells = "".join(_html_cell(cell, word) for cell, word in zip(row, words, strict=True))
        lines.append(f"<tr{' class=ours' if number in table.bold else ''}>{cells}</tr>")
    return [*lines, "</tbody></table></div>"]


def _html_cell(cell: str, word: bool) -> str:
    long = " long" if len(cell) > LONG else ""
    return f'<td class="text{long}">{escape(cell)}</td>' if word else f"<td>{escape(cell)}</td>"


def _md(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))

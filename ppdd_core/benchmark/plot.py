"""Bars of ratios as SVG text: values in, text out. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

COLOURS = ("#1f5fa8", "#c2571a", "#4b8b3b", "#7a4fa3", "#8a6d1f", "#44707a")
WIDTH, LEFT, RIGHT = 760, 190, 90
ROW = 24


@dataclass(frozen=True, slots=True)
class Group:
    """Bars under one heading: a value for each name, and its text."""

    heading: str
    bars: Sequence[tuple[str, float, str]]


def bars(title: str, groups: Sequence[Group], note: str = "") -> str:
    """Return horizontal bars as SVG: every group on a scale of its own from 0; a line marks 1 where that is in it."""
    height = 40 + sum(30 + ROW * len(group.bars) for group in groups) + (26 if note else 8)
    room, y, parts = WIDTH - LEFT - RIGHT, 40, [_text(16, 24, title, weight="bold")]
    for group in groups:
        y += 20
        parts.append(_text(16, y, group.heading, fill="#555"))
        y += 10
        longest = max([1.0, *(value for _, value, _ in group.bars)])
        top = y
        for place, (name, value, text) in enumerate(group.bars):
            length = room * max(value, 0.0) / longest
            parts += [
                _text(LEFT - 8, y + 16, name, anchor="end"),
                f'<rect x="{LEFT}" y="{y + 3}" width="{length:.1f}" height="{ROW - 7}" '
                f'fill="{COLOURS[place % len(COLOURS)]}"/>',
                _text(LEFT + length + 6, y + 16, text),
            ]
            y += ROW
        one = LEFT + room / longest
        parts.append(
            f'<line x1="{one:.1f}" y1="{top}" x2="{one:.1f}" y2="{y}" stroke="#555" stroke-dasharray="3 3"/>'
        )
    if note:
        parts.append(_text(16, y + 20, note, fill="#555"))
    return _svg(WIDTH, height, title, parts)


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = "#111",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="sans-serif" font-size="13" role="img">\n<title>{escape(title)}</title>\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{inside}\n</svg>\n'
    )

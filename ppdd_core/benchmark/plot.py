"""Results as pictures: bars of ratios, and curves against seconds. SVG by hand, read by every browser. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10
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


def curves(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    level: float | None = None,
) -> str:
    """Return curves as SVG, the way across in powers of ten; `level` is a line that one of them has to reach."""
    points = [point for line in lines.values() for point in line]
    height, bottom, top, left, right = 400, 340, 50, 70, WIDTH - 110
    parts = [
        _text(16, 24, title, weight="bold"),
        _text((left + right) / 2, 385, across, anchor="middle"),
    ]
    parts.append(
        f'<text x="18" y="{(top + bottom) / 2}" transform="rotate(-90 18 {(top + bottom) / 2})" '
        f'text-anchor="middle">{escape(up)}</text>'
    )
    if not points:
        return _svg(WIDTH, height, title, [*parts, _text(left, top + 20, "nothing measured yet")])
    ticks_x = _powers(min(x for x, _ in points), max(x for x, _ in points))
    values = [y for _, y in points] + ([level] if level is not None else [])
    ticks_y = _tenths(min(values), max(values))

    def at_x(x: float) -> float:
        low, high = log10(ticks_x[0]), log10(ticks_x[-1])
        return left + (right - left) * (log10(max(x, ticks_x[0])) - low) / (high - low)

    def at_y(y: float) -> float:
        return bottom - (bottom - top) * (y - ticks_y[0]) / (ticks_y[-1] - ticks_y[0])

    for x in ticks_x:
        parts += [
            _line(at_x(x), top, at_x(x), bottom),
            _text(at_x(x), bottom + 18, f"{x:,.0f}", anchor="middle"),
        ]
    for y in ticks_y:
        parts += [
            _line(left, at_y(y), right, at_y(y)),
            _text(left - 8, at_y(y) + 4, f"{y:.2f}", anchor="end"),
        ]
    if level is not None:
        parts.append(
            f'<line x1="{left}" y1="{at_y(level):.1f}" x2="{right}" y2="{at_y(level):.1f}" stroke="#222" '
            'stroke-dasharray="5 4"/>'
        )
    for place, (name, line) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"/>'
            for x, y in line
        ]
        parts.append(_text(right + 8, top + 14 + 18 * place, name, fill=colour))
    return _svg(WIDTH, height, title, parts)


def _powers(low: float, high: float) -> list[float]:
    """Return 1, 2, 5, 10 … from at most `low` to at least `high`."""
    steps = [factor * 10.0**power for power in range(-1, 9) for factor in (1, 2, 5)]
    below = [step for step in steps if step <= low] or steps[:1]
    above = [step for step in steps if step >= high and step > below[-1]] or steps[-1:]
    return [step for step in steps if below[-1] <= step <= above[0]]


def _tenths(low: float, high: float) -> list[float]:
    """Return multiples of 0.05 around `low` and `high`."""
    first, last = int(low / 0.05), int(high / 0.05) + 1
    return [round(0.05 * number, 2) for number in range(first, last + 1)]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


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

"""Plots as SVG text: lines with error bars over a linear or logarithmic axis. Values in, text out; torch-free.

A plot stands by itself as a file and inside a page: its colours follow the reader's light or dark scheme, series are
told apart by dashes and marks too, and every point says its value. It is drawn for the width of a telephone and grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PLOT_HEIGHT = 400.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 10.0, 44.0
LEGEND_LINE = 18.0
TICKS = 5
DODGE = 2.5  # to the side, from series to series: so that bars at one x are all seen
SERIES = 8  # colours there are
LETTER = 6.4  # width of a letter, about
MARKS = ("circle", "square", "triangle", "diamond")
DASHES = ("", "7 4", "2 3", "9 3 2 3")

STYLE = """
.ppdd-plot { --ink: #26303a; --faint: #d8dee4; --paper: #fff; --s0: #0b62c4; --s1: #c2410c; --s2: #15803d;
  --s3: #7e22ce; --s4: #0e7490; --s5: #b91c5c; --s6: #7a5c00; --s7: #52606d;
  font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; background: var(--paper); }
@media (prefers-color-scheme: dark) { .ppdd-plot { --ink: #dbe2ea; --faint: #3a444f; --paper: #171c22; --s0: #6cb0ff;
  --s1: #ff9d66; --s2: #62d68a; --s3: #c79bff; --s4: #5fd0e6; --s5: #ff8cb8; --s6: #e0c15a; --s7: #a9b6c2; } }
.ppdd-plot text { fill: var(--ink); }
.ppdd-plot .grid { stroke: var(--faint); stroke-width: 1; }
.ppdd-plot .axis { stroke: var(--ink); stroke-width: 1; }
.ppdd-plot .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.ppdd-plot .bar { stroke-width: 1.3; }
""" + "".join(
    f".ppdd-plot .s{n} {{ stroke: var(--s{n}); }} .ppdd-plot .m{n} {{ fill: var(--s{n}); }}\n"
    for n in range(SERIES)
)


@dataclass(frozen=True, slots=True)
class Point:
    """One point; `spread` is drawn as a bar above and below."""

    x: float
    y: float
    spread: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a plot. `level` draws its last point's height across the whole plot, as something to compare with."""

    name: str
    points: Sequence[Point]
    marks: bool = True
    level: bool = False


def plot(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    logarithmic: bool = False,
    x_text: Callable[[float], str] | None = None,
) -> str:
    """Return the plot; the empty string where no point is finite. On a logarithmic axis x must be above 0."""
    drawn = [
        Series(one.name, _finite(one.points, logarithmic), one.marks, one.level) for one in series
    ]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return ""
    points = [point for one in drawn for point in one.points]
    edges = [point.y + side * (point.spread or 0.0) for point in points for side in (-1, 1)]
    across = _axis(
        [point.x for point in points], (LEFT, WIDTH - RIGHT), logarithmic=logarithmic, inset=0.05
    )
    up = _axis(edges, (TOP + PLOT_HEIGHT - BOTTOM, TOP), inset=0.06)
    legend = list(_legend(drawn))
    height = TOP + PLOT_HEIGHT + legend[-1][1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="ppdd-plot" viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        f'aria-label="{escape(title)}">',
        f"<style>{STYLE}</style>",
        *_frame(across, up, x, y, x_text or _number),
    ]
    aside = DODGE if any(point.spread for point in points) else 0.0
    for place, one in enumerate(drawn):
        shift = aside * (place - (len(drawn) - 1) / 2)
        parts += _series(place, one, across, up, x_text or _number, shift)
    parts += [text for text, _ in legend]
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True, slots=True)
class _Axis:
    """From values to places on the picture, and which values are marked."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            value = math.log10(value)
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            return self._decades()
        step = _round_step((self.high - self.low) / TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [
            round(number * step, 12)
            for number in range(first, math.floor(self.high / step + 1e-9) + 1)
        ]

    def _decades(self) -> list[float]:
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        for within in ((1,), (1, 3), (1, 2, 5)):
            found = [
                factor * 10.0**power
                for power in powers
                for factor in within
                if self.low <= math.log10(factor * 10.0**power) <= self.high
            ]
            if len(found) >= 3:
                break
        return found[:: -(-len(found) // (TICKS + 1))] if found else [10**self.low]


def _axis(
    values: Sequence[float], place: tuple[float, float], *, inset: float, logarithmic: bool = False
) -> _Axis:
    scaled = [math.log10(value) for value in values] if logarithmic else list(values)
    low, high = min(scaled), max(scaled)
    room = (high - low) * inset or abs(high) * 0.05 or 0.5
    return _Axis(low - room, high + room, *place, logarithmic)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * 0.999)


def _finite(points: Sequence[Point], logarithmic: bool) -> list[Point]:
    return [
        point
        for point in points
        if math.isfinite(point.x) and math.isfinite(point.y) and (point.x > 0 or not logarithmic)
    ]


def _frame(
    across: _Axis, up: _Axis, x: str, y: str, x_text: Callable[[float], str]
) -> Iterator[str]:
    bottom, left, right = up.start, across.start, across.end
    for value in up.ticks():
        at = up(value)
        yield f'<line class="grid" x1="{left:g}" x2="{right:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{left - 6:g}" y="{at + 4:.1f}" text-anchor="end">{_number(value)}</text>'
    for value in across.ticks():
        at = across(value)
        yield f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom:g}" y2="{bottom + 4:g}"/>'
        yield (
            f'<text x="{at:.1f}" y="{bottom + 17:g}" text-anchor="middle">{escape(x_text(value))}</text>'
        )
    yield f'<line class="axis" x1="{left:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>'
    middle, half = (left + right) / 2, (TOP + bottom) / 2
    yield f'<text x="{middle:g}" y="{bottom + 34:g}" text-anchor="middle">{escape(x)}</text>'
    yield (
        f'<text transform="translate(12 {half:g}) rotate(-90)" text-anchor="middle">{escape(y)}</text>'
    )


def _series(
    place: int,
    one: Series,
    across: _Axis,
    up: _Axis,
    x_text: Callable[[float], str],
    shift: float,
) -> Iterator[str]:
    colour, dash = f"s{place % SERIES}", DASHES[place % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    if one.level:
        at = up(one.points[-1].y)
        yield (
            f'<line class="line {colour}" stroke-dasharray="4 4" opacity="0.55" x1="{across.start:g}" '
            f'x2="{across.end:g}" y1="{at:.1f}" y2="{at:.1f}"/>'
        )
    if len(one.points) > 1:
        path = " ".join(f"{across(point.x) + shift:.1f},{up(point.y):.1f}" for point in one.points)
        yield f'<polyline class="line {colour}"{dashed} points="{path}"/>'
    for point in one.points if one.marks or len(one.points) == 1 else ():
        at, height = across(point.x) + shift, up(point.y)
        if point.spread:
            high, low = up(point.y + point.spread), up(point.y - point.spread)
            for x1, x2, y1, y2 in (
                (at, at, high, low),
                (at - 3, at + 3, high, high),
                (at - 3, at + 3, low, low),
            ):
                yield (
                    f'<line class="bar {colour}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
                )
        spread = f" ± {point.spread:.3f}" if point.spread else ""
        said = f"{one.name}: {point.y:.3f}{spread} at {x_text(point.x)}"
        yield _mark(place, at, height, said)


def _mark(place: int, x: float, y: float, said: str) -> str:
    title = f"<title>{escape(said)}</title>" if said else ""
    colour = f"m{place % SERIES}"
    kind = MARKS[place % len(MARKS)]
    if kind == "circle":
        return f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.6">{title}</circle>'
    corners = {
        "square": ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        "triangle": ((0, -4.4), (4, 3.2), (-4, 3.2)),
        "diamond": ((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
    }[kind]
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)
    return f'<polygon class="{colour}" points="{points}">{title}</polygon>'


def _legend(series: Sequence[Series]) -> Iterator[tuple[str, float]]:
    """Yield the entries below the plot, as many beside each other as fit, with the height used so far."""
    x, line = LEFT / 2, 0
    width = 36 + LETTER * max(len(one.name) for one in series)
    for place, one in enumerate(series):
        if place and x + width > WIDTH:
            x, line = LEFT / 2, line + 1
        y = TOP + PLOT_HEIGHT + 8 + line * LEGEND_LINE
        dash = DASHES[place % len(DASHES)]
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        mark = _mark(place, x + 10, y, "") if one.marks or len(one.points) == 1 else ""
        yield (
            f'<line class="line s{place % SERIES}"{dashed} x1="{x:g}" x2="{x + 20:g}" y1="{y:g}" y2="{y:g}"/>'
            f'{mark}<text x="{x + 26:g}" y="{y + 4:g}">{escape(one.name)}</text>',
            8 + (line + 1) * LEGEND_LINE,
        )
        x += width


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def bytes_text(value: float) -> str:
    """Return a number of bytes as people say it: 4 kB, 1.2 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"

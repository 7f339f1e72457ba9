"""Plots as SVG, drawn here: they need no script, grow with the page, and each carries its numbers as a table,
folded away under the word that the caller has for them.

Colours are classes (`series-1` …) of the style sheet, told apart without colour too, by their dashes and marks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 560.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 56.0, 12.0, 12.0, 36.0
MOST_POINTS = 300  # more are thinned: a plot has no more columns
MOST_ROWS = 25  # of the table beside a plot
SERIES = 6  # styles there are
LONGEST = 28  # characters of a name beside a bar
STEP, NAMES, FIGURES = 26.0, 190.0, 64.0  # of bars: height of one, room for names and for figures


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a plot: its name and its points (x, y), x ascending. What is not finite is left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its name, its value, and its interval where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


def lines(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    numbers: str,
    logarithmic: bool = False,
    between: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> Markup:
    """Return a plot of lines. `between` fixes the y axis; `diagonal` draws chance, as under a ROC curve."""
    drawn = [Series(one.name, _thinned(_drawable(one.points, logarithmic))) for one in series]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return Markup("")
    all_x = [point[0] for one in drawn for point in one.points]
    all_y = [point[1] for one in drawn for point in one.points]
    counted = all(
        value == int(value) for value in all_x
    )  # epochs and steps: there is none between two
    across = _Axis(min(all_x), max(all_x), LEFT, WIDTH - RIGHT, least_step=1.0 if counted else 0.0)
    low, high = between or _room(min(all_y), max(all_y), logarithmic)
    up = _Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    parts = [_frame(across, up, x, y)]
    if diagonal:
        ends = [(across.least, up.least), (across.most, up.most)]
        parts.append(_path("line chance", ends, across, up))
    for place, one in enumerate(drawn):
        style, end = f"series-{place % SERIES + 1}", one.points[-1]
        parts.append(_path(f"line {style}", one.points, across, up))
        parts.append(_tag("circle", class_=f"dot {style}", cx=across(end[0]), cy=up(end[1]), r=3))
    names = [one.name for one in drawn]
    return _figure(title, _joined(parts), names, [x, *names], _rows(drawn), numbers)


def bars(
    title: str,
    values: Sequence[Bar],
    *,
    y: str,
    numbers: str,
    between: tuple[float, float] = (0.0, 1.0),
    alike: bool = False,
) -> Markup:
    """Return lying bars with their intervals: names have room so. The first is told apart unless all are `alike`."""
    if not values:
        return Markup("")
    height = STEP * len(values) + BOTTOM
    across = _Axis(*between, NAMES, WIDTH - FIGURES)
    parts = []
    for tick in across.ticks():
        at = across(tick)
        parts.append(_tag("line", class_="grid", x1=at, x2=at, y1=4, y2=height - BOTTOM + 2))
        parts.append(_text("tick", at, height - BOTTOM + 18, _said(tick), "middle"))
    for place, bar in enumerate(values):
        parts.append(_bar(bar, across, STEP * (place + 0.5) + 2, 1 if alike or place == 0 else 2))
    parts.append(_text("axis", (NAMES + WIDTH - FIGURES) / 2, height - 4, y, "middle"))
    rows = [[bar.name, _said(bar.value), _interval(bar)] for bar in values]
    return _figure(title, _joined(parts), [], ["", y, "95 %"], rows, numbers, height=height)


def grid(
    title: str, names: Sequence[str], counts: Sequence[Sequence[float]], *, down: str, across: str
) -> Markup:
    """Return a confusion matrix: a table whose cells are shaded by their share of the row."""
    head = _joined(_tag("th", name, scope="col") for name in names)
    rows = _joined(
        _tag("tr", _tag("th", name, scope="row") + _cells(line))
        for name, line in zip(names, counts, strict=True)
    )
    corner = _tag("th", f"{down} \\ {across}", scope="col")
    table = _tag("thead", _tag("tr", corner + head)) + _tag("tbody", rows)
    return _tag(
        "figure",
        _tag("figcaption", title) + _scrolling(_tag("table", table, class_="matrix"), title),
        class_="chart",
    )


def histogram(
    title: str,
    counts: Sequence[float],
    *,
    x: str,
    y: str,
    numbers: str,
    span: tuple[float, float],
) -> Markup:
    """Return counts of equal steps between the ends of `span` as columns."""
    if not counts or max(counts) <= 0:
        return Markup("")
    wide = (span[1] - span[0]) / len(counts)
    starts = [span[0] + place * wide for place in range(len(counts))]
    across = _Axis(*span, LEFT, WIDTH - RIGHT)
    up = _Axis(0.0, max(counts), HEIGHT - BOTTOM, TOP)
    columns = [
        _tag(
            "rect",
            class_="bar series-1",
            x=across(start),
            y=up(count),
            width=across(start + wide) - across(start),
            height=HEIGHT - BOTTOM - up(count),
        )
        for start, count in zip(starts, counts, strict=True)
    ]
    rows = [
        [f"{_said(start)} – {_said(start + wide)}", _said(count)]
        for start, count in zip(starts, counts, strict=True)
    ]
    return _figure(
        title, _frame(across, up, x, y) + _joined(columns), [], [x, y], _few(rows), numbers
    )


class _Axis:
    """From values to places on the drawing."""

    def __init__(
        self,
        least: float,
        most: float,
        start: float,
        end: float,
        logarithmic: bool = False,
        least_step: float = 0.0,
    ) -> None:
        if least == most:
            least, most = (least / 2, most * 2) if logarithmic else (least - 0.5, most + 0.5)
        self.least, self.most, self.start, self.end = least, most, start, end
        self.scale: Callable[[float], float] = math.log10 if logarithmic else float
        self.logarithmic, self.least_step = logarithmic, least_step

    def __call__(self, value: float) -> float:
        low, high = self.scale(self.least), self.scale(self.most)
        return self.start + (self.scale(value) - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
            found = [10.0**power for power in powers if self.least <= 10.0**power <= self.most]
            return found if len(found) > 1 else [self.least, self.most]
        step = max(_nice((self.most - self.least) / 5), self.least_step)
        first = math.ceil(self.least / step - 1e-9)
        last = math.floor(self.most / step + 1e-9)
        return [place * step for place in range(first, last + 1)]


# ---------------------------------------------------------------------------------------------- numbers


def _drawable(
    points: Sequence[tuple[float, float]], logarithmic: bool
) -> list[tuple[float, float]]:
    return [
        (float(x), float(y))
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and not (logarithmic and y <= 0)
    ]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return points evenly chosen, the last among them."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(place * step)] for place in range(MOST_POINTS)]


def _room(low: float, high: float, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        return low, high
    if low == high > 0:  # the first point of a curve: below it is zero, and as much above
        return 0.0, 2 * high
    spare = (high - low) * 0.05
    return (0.0 if 0 <= low < (high - low) else low - spare), high + spare


def _nice(step: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least as large as `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= step * 0.999)


def _rows(series: Sequence[Series]) -> list[list[str]]:
    at: dict[float, dict[int, float]] = {}
    for place, one in enumerate(series):
        for x, y in one.points:
            at.setdefault(x, {})[place] = y
    return _few(
        [
            [
                _said(x),
                *(_said(at[x][place]) if place in at[x] else "" for place in range(len(series))),
            ]
            for x in sorted(at)
        ]
    )


def _few(rows: list[list[str]]) -> list[list[str]]:
    if len(rows) <= MOST_ROWS:
        return rows
    step = (len(rows) - 1) / (MOST_ROWS - 1)
    return [rows[round(place * step)] for place in range(MOST_ROWS)]


def _cut(name: str) -> str:
    """Return a name that fits beside its bar; the table has it whole."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _interval(bar: Bar) -> str:
    known = bar.low is not None and bar.high is not None
    return f"{_said(bar.low or 0)} – {_said(bar.high or 0)}" if known else ""


def _said(value: float) -> str:
    """Return a number with as many digits as a reader wants."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        return f"{value:.1e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


# ---------------------------------------------------------------------------------------------- drawing


def _frame(across: _Axis, up: _Axis, x: str, y: str) -> Markup:
    parts = []
    for tick in up.ticks():
        at = up(tick)
        parts.append(_tag("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        parts.append(_text("tick", LEFT - 6, at + 4, _said(tick), "end"))
    for tick in across.ticks():
        parts.append(_text("tick", across(tick), HEIGHT - BOTTOM + 16, _said(tick), "middle"))
    parts.append(_text("axis", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, x, "middle"))
    turned = f"translate(12 {(TOP + HEIGHT - BOTTOM) / 2:.1f}) rotate(-90)"
    parts.append(_tag("text", y, class_="axis", transform=turned, text_anchor="middle"))
    return _joined(parts)


def _path(style: str, points: Sequence[tuple[float, float]], across: _Axis, up: _Axis) -> Markup:
    places = " ".join(
        f"{across(x):.1f},{up(min(max(y, up.least), up.most)):.1f}" for x, y in points
    )
    return _tag("polyline", class_=style, points=places)


def _bar(bar: Bar, across: _Axis, middle: float, style: int) -> Markup:
    end = across(min(max(bar.value, across.least), across.most))
    parts = [
        _text("name", NAMES - 8, middle + 4, _cut(bar.name), "end"),
        _tag(
            "rect", class_=f"bar series-{style}", x=NAMES, y=middle - 7, width=max(end - NAMES, 0), height=14, rx=2
        ),
    ]  # fmt: skip
    if bar.low is not None and bar.high is not None:
        low, high = across(bar.low), across(bar.high)
        parts.append(_tag("line", class_="interval", x1=low, x2=high, y1=middle, y2=middle))
        end = max(end, high)
    parts.append(_text("value", end + 6, middle + 4, _said(bar.value), "start"))
    return _joined(parts)


def _figure(
    title: str,
    drawing: Markup,
    legend: Sequence[str],
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: str,
    *,
    height: float = HEIGHT,
) -> Markup:
    """Return a drawing with its title, its legend where there is more than one line, and its numbers folded away."""
    picture = _tag(
        "svg", drawing, viewBox=f"0 0 {WIDTH:.0f} {height:.0f}", role="img", aria_label=title
    )
    keys = _joined(_key(place, name) for place, name in enumerate(legend))
    tops = _tag("tr", _joined(_tag("th", one, scope="col") for one in head))
    lines_of = _joined(_tag("tr", _joined(_tag("td", cell) for cell in row)) for row in rows)
    table = _tag("table", _tag("thead", tops) + _tag("tbody", lines_of), class_="numbers")
    return _tag(
        "figure",
        _tag("figcaption", title)
        + picture
        + (_tag("ul", keys, class_="legend") if len(legend) > 1 else Markup(""))
        + _tag("details", _tag("summary", numbers) + _scrolling(table, title)),
        class_="chart",
    )


def _key(place: int, name: str) -> Markup:
    style = f"line series-{place % SERIES + 1}"
    line = _tag("line", class_=style, x1=0, x2=24, y1=4, y2=4)
    return _tag(
        "li", _tag("svg", line, class_="key", viewBox="0 0 24 8", aria_hidden="true") + name
    )


def _scrolling(table: Markup, title: str) -> Markup:
    """Return a table that scrolls within the page, with keys too."""
    return _tag("div", table, class_="scroll", tabindex=0, role="region", aria_label=title)


def _cells(line: Sequence[float]) -> Markup:
    whole = sum(line)
    return _joined(
        _tag("td", _said(count), class_=f"shade-{math.floor(9 * count / whole) if whole else 0}")
        for count in line
    )


def _text(style: str, x: float, y: float, content: str, anchor: str) -> Markup:
    return _tag("text", content, class_=style, x=x, y=y, text_anchor=anchor)


def _tag(name: str, content: str = "", **attributes: str | float) -> Markup:
    """Return an element; `class_` is `class`, `a_b` is `a-b`. Whatever is no Markup is escaped."""
    written = _joined(
        Markup(' {}="{}"').format(
            key.strip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, content)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)

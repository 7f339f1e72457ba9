"""Plots are well-formed SVG in which values stand where they belong."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from ppdd_core.sweep.svg import DODGE, Point, Series, bytes_text, plot

NS = "{http://www.w3.org/2000/svg}"


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)


def texts(root: ET.Element) -> list[str]:
    return ["".join(node.itertext()) for node in root.iter(f"{NS}text")]


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis() -> None:
    points = [Point(10, 0.1), Point(100, 0.2), Point(1000, 0.3)]
    root = parsed(plot("t", [Series("a", points)], x="bytes", y="share", logarithmic=True))
    (line,) = root.iter(f"{NS}polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(places, places[1:], strict=False)]
    assert steps[0][0] == pytest.approx(steps[1][0], abs=0.2)
    assert steps[0][0] > 20
    assert steps[0][1] == pytest.approx(steps[1][1], abs=0.2)
    assert steps[0][1] < -20  # upwards
    assert {"10", "100", "1,000", "bytes", "share", "a"} <= set(texts(root))


def test_every_point_has_its_bar_its_mark_and_its_words() -> None:
    series = [
        Series("ours", [Point(1, 0.5, 0.1), Point(2, 0.6, 0.05)]),
        Series("theirs", [Point(1, 0.4)]),
    ]
    root = parsed(plot("t", series, x="x", y="y"))
    bars = [n for n in root.iter(f"{NS}line") if n.attrib["class"].startswith("bar")]
    assert len(bars) == 2 * 3  # a stem and two ends each
    said = [n.text for n in root.iter(f"{NS}title")]
    assert said == ["ours: 0.500 ± 0.100 at 1", "ours: 0.600 ± 0.050 at 2", "theirs: 0.400 at 1"]
    stems = [n.attrib for n in bars if n.attrib["x1"] == n.attrib["x2"]]
    lengths = [float(a["y2"]) - float(a["y1"]) for a in stems]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.01)


def test_bars_at_one_place_do_not_hide_each_other() -> None:
    series = [Series(name, [Point(5, 0.5, 0.1), Point(6, 0.5, 0.1)]) for name in "ab"]
    root = parsed(plot("t", series, x="x", y="y"))
    first, second = (
        float(line.attrib["points"].split(",")[0]) for line in root.iter(f"{NS}polyline")
    )
    assert second - first == pytest.approx(DODGE, abs=0.11)


def test_names_from_outside_stay_text() -> None:
    root = parsed(plot("<b>&", [Series("<script>&", [Point(1, 1)])], x="<i>", y='"'))
    assert root.attrib["aria-label"] == "<b>&"
    assert {"<script>&", "<i>", '"'} <= set(texts(root))
    assert not list(root.iter(f"{NS}script"))


def test_what_is_not_finite_is_left_out_and_nothing_left_is_no_plot() -> None:
    bad = [Point(1, math.nan), Point(math.inf, 1.0), Point(-1, 1.0)]
    assert plot("t", [Series("a", bad)], x="x", y="y", logarithmic=True) == ""
    root = parsed(plot("t", [Series("a", [*bad, Point(3, 2)])], x="x", y="y", logarithmic=True))
    assert [n.text for n in root.iter(f"{NS}title")] == ["a: 2.000 at 3"]


def test_everything_lies_inside_the_picture() -> None:
    series = [
        Series(f"a rather long name of a series, number {n}", [Point(n + 1, n, 0.5)], level=n == 1)
        for n in range(10)
    ]
    root = parsed(plot("t", series, x="x", y="y"))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for node in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(node.attrib.get(name, 0)) <= width
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(node.attrib.get(name, 0)) <= height


@pytest.mark.parametrize(
    ("value", "text"), [(12, "12 B"), (4096, "4.1 kB"), (2_500_000, "2.5 MB"), (7e9, "7 GB")]
)
def test_bytes_as_people_say_them(value: float, text: str) -> None:
    assert bytes_text(value) == text

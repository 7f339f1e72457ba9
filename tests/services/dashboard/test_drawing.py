"""What pages say in pictures and in short words: plots and durations."""

from __future__ import annotations

import re

import pytest

from services.dashboard.charts import Series, lines
from services.dashboard.rendering import duration


def ticks(plot: str) -> list[str]:
    return re.findall(r'class="tick"[^>]*>([^<]+)<', plot)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.02, "< 0.1 s"),
        (0.31, "0.3 s"),
        (0.97, "1 s"),
        (42.4, "42 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (43_200, "12 h"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_the_first_point_of_a_curve_stands_between_zero_and_its_double() -> None:
    plot = lines("α", [Series("α", [(1, 0.01)])], x="step", y="α", numbers="numbers")
    assert ticks(plot)[0] == "0" and not any(tick.startswith("-") for tick in ticks(plot))


def test_epochs_and_steps_have_no_halves() -> None:
    plot = lines("x", [Series("x", [(1, 0.2), (2, 0.3)])], x="epoch", y="y", numbers="numbers")
    assert ticks(plot)[-2:] == ["1", "2"]


def test_a_plot_carries_its_numbers() -> None:
    plot = lines("x", [Series("loss", [(1, 0.25)])], x="epoch", y="y", numbers="In numbers")
    assert "<summary>In numbers</summary>" in plot and "<td>0.25</td>" in plot


def test_text_of_others_stays_text_in_a_plot() -> None:
    plot = lines("<b>", [Series("<i>", [(1, 2), (2, 3)])], x="<u>", y="<s>", numbers="<p>")
    assert not re.search(r"<(b|i|u|s|p)>", plot)

"""From what a job reported on its way to the plots that grow with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from services.dashboard import charts
from services.dashboard.language import Translate
from services.jobs.models import JobEvent

# By stage: the number that is reported, the plot's title, its axes, and whether it is drawn by powers of ten.
PLOTS = {
    "teachers": (("accuracy", "Accuracy of the teachers", "epoch of all teachers", "balanced accuracy", False),),
    "distillation": (
        ("loss", "Matching loss", "step", "loss", False),
        ("lr", "Learning rate α", "step", "α", True),
        ("pruned", "Share of parameters pruned", "step", "share", False),
    ),
    "epochs": (("loss", "Loss of the training", "epoch", "loss", False),),
}  # fmt: skip
SHARES = frozenset({"accuracy", "pruned"})  # drawn from 0 to 1


def plots(events: Sequence[JobEvent], t: Translate) -> list[Markup]:
    """Return a plot of every number that the job reported, in the order of its stages."""
    drawn: list[Markup] = []
    for stage, wanted in PLOTS.items():
        of_stage = [event.data for event in events if event.data.get("stage") == stage]
        for number, title, x, y, logarithmic in wanted:
            points = _points(of_stage, number)
            if points:
                drawn.append(
                    charts.lines(
                        t(title),
                        [charts.Series(t(title), points)],
                        x=t(x),
                        y=t(y),
                        logarithmic=logarithmic and _spans_powers(points),
                        between=(0.0, 1.0) if number in SHARES else None,
                        numbers=t("In numbers"),
                    )
                )
    return drawn


def newest(events: Sequence[JobEvent], stage: str) -> Mapping[str, Any]:
    """Return the numbers that were reported last in a stage."""
    found = [
        event.data.get("numbers") or {} for event in events if event.data.get("stage") == stage
    ]
    return found[-1] if found else {}


def _points(reports: Sequence[Mapping[str, Any]], number: str) -> list[tuple[float, float]]:
    """Return (done, value); a step that an attempt took again counts as it was the last time."""
    points: dict[float, float] = {}
    for report in reports:
        value, done = (report.get("numbers") or {}).get(number), report.get("done")
        if _is_number(value) and _is_number(done):
            points[float(done)] = float(value)  # type: ignore[arg-type]
    return sorted(points.items())


def _spans_powers(points: Sequence[tuple[float, float]]) -> bool:
    """Whether powers of ten lie between the values: else their axis would have no even numbers."""
    values = [value for _, value in points if value > 0]
    return len(values) == len(points) and max(values) >= 30 * min(values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

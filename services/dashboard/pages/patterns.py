"""Every part that pages are made of, once, for whoever changes them."""

from __future__ import annotations

import math

from fastapi import Request, Response

from services.dashboard import charts
from services.dashboard.forms import Form
from services.dashboard.rendering import render
from services.dashboard.route import page_router

router = page_router()
STATES = (
    "queued",
    "running",
    "succeeded",
    "failed",
    "cancelled",
    "draft",
    "released",
    "yanked",
    "held",
    "passed",
)


@router.get("/patterns")
def patterns(request: Request) -> Response:
    """Show every component."""
    form = Form.of(name="chest", bad="-1")
    form.errors["bad"] = "Must be 1 or more."
    form.problem = "Some fields need another look."
    falling = [(float(step), 1.2 * math.exp(-step / 40) + 0.05) for step in range(120)]
    return render(
        request,
        "patterns.html",
        form=form,
        status=200,
        states=STATES,
        plots=[
            charts.lines(
                "Matching loss",
                [
                    charts.Series("seed 0", falling),
                    charts.Series("seed 1", [(x, y * 1.2) for x, y in falling]),
                ],
                x="iteration",
                y="loss",
                numbers="In numbers",
            ),
            charts.bars(
                "Balanced accuracy",
                [
                    charts.Bar("distilled", 0.71, 0.66, 0.75),
                    charts.Bar("random real images", 0.52, 0.47, 0.57),
                ],
                y="balanced accuracy",
                numbers="In numbers",
            ),
            charts.histogram(
                "Grey levels",
                [1, 4, 9, 12, 7, 3, 2, 1],
                x="grey level",
                y="share",
                span=(0, 255),
                numbers="In numbers",
            ),
            charts.grid(
                "Confusion",
                ("COVID", "Normal"),
                ((31, 4), (6, 40)),
                down="true",
                across="predicted",
            ),
        ],
    )

"""A sweep from its grid to its report: load, plan, compute what is missing, write."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from ppdd_core.errors import CheckpointError
from ppdd_core.pipeline import Measured, Source, pick_device
from ppdd_core.run_folder import resumable
from ppdd_core.sweep.grid import Grid
from ppdd_core.sweep.plan import plan
from ppdd_core.sweep.report import Circumstances, write_report
from ppdd_core.sweep.run import OnStanding, run
from ppdd_core.sweep.work import Desk, Settings, settings_for


def sweep(
    grid: Grid,
    source: Source,
    out: Path,
    *,
    report_to: Path,
    command: str,
    on: Measured = "test",
    device_name: str = "auto",
    processes: int = 0,
    calibrate: bool = True,
    compute: bool = True,
    cache_dir: Path | None = None,
    on_standing: OnStanding = lambda _: None,
) -> dict[str, Any]:
    """Compute what `out` does not hold of the grid yet and return what report.json holds.

    Without `compute` what is there is reported, also while another process works on it. A folder that another
    process works in raises CheckpointError; Ctrl-C becomes Interrupted, with the report of what is there.
    """
    device = pick_device(device_name)
    count = processes or (max(1, torch.cuda.device_count()) if device.type == "cuda" else 1)
    settings = settings_for(
        Settings(source=source, out=out, on=on, cache_dir=cache_dir), workers=count, device=device
    )
    desk = Desk(settings, device)
    if not compute and not out.is_dir():
        raise CheckpointError(f"there is no sweep in {out}")
    with resumable(out) if compute else contextlib.nullcontext():
        planned = plan(grid, desk.images, on=on, parts=count, estimates=calibrate)
        failures: dict[str, str] = {}
        circumstances = Circumstances(command=command, processes=count, threads=settings.threads)
        try:
            if compute:
                failures = run(
                    planned.pieces, settings, device=device, processes=count, desk=desk,
                    on_standing=on_standing,
                )  # fmt: skip
        finally:
            value = write_report(grid, planned, out, report_to, failures, circumstances, on=on)
    return value

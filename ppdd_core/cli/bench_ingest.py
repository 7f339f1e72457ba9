"""`ppdd bench ingest`: images per second into the cache, against the bare decode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ppdd_core.benchmark.ingest import cpu_ratio, measure_ingest, median_ratio
from ppdd_core.benchmark.plot import Group as Bars
from ppdd_core.benchmark.plot import bars
from ppdd_core.cli.console import JsonOption, emit, progress_bar
from ppdd_core.cli.dataset import parse_where
from ppdd_core.cli.distill import Where
from ppdd_core.data.files import write_atomically
from ppdd_core.processes import usable_cores

Plot = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the ratios as bars too.")
]


def ingest(
    data: Annotated[Path, typer.Option(help="Folder, ZIP or CSV manifest of X-rays.")],
    where: Where = None,
    size: Annotated[int, typer.Option(help="Pixels of a side, decoded to.")] = 112,
    rounds: Annotated[
        int, typer.Option(help="Times that each side is measured, in turns.", min=1)
    ] = 5,
    plot: Plot = None,
    as_json: JsonOption = False,
) -> None:
    """Count the images per second of our ingest: reading, hashing, checks, decoding, the cache (a cold one).

    Beside it the bare decode of the same files: Pillow alone in one process per core, nothing checked, nothing kept.
    """
    cores = usable_cores()
    rows = parse_where(where) or {}
    with progress_bar("measuring") as update:
        ours, bare = measure_ingest(
            data, rows, size=size, rounds=rounds, cores=cores, on_round=update
        )
    ratio, of_cores = median_ratio(ours, bare), cpu_ratio(ours, bare)
    title = f"ingest: {ours.images:,} images to {size} px, {cores} cores"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("seconds", "images/s", "speed ×", "per core ×"):
        table.add_column(name, justify="right", no_wrap=True)
    for one, share, cpu in ((ours, ratio, of_cores), (bare, 1.0, 1.0)):
        low, high = min(one.seconds), max(one.seconds)
        table.add_row(
            one.name,
            f"{low:.2f}–{high:.2f}",
            f"{one.images_per_second:,.0f}",
            f"{share:.2f}",
            f"{cpu:.2f}",
        )
    value = {
        "what": title, "images": ours.images, "size": size, "cores": os.cpu_count(), "rounds": rounds,
        "ratio": round(ratio, 3), "ratio_of_processor_time": round(of_cores, 3),
        "results": [ours.to_dict(), bare.to_dict()],
    }  # fmt: skip
    if plot is not None:
        group = Bars("images per second, as a share of the bare decode", [
            (ours.name, ratio, f"{ratio:.2f} ×"), (bare.name, 1.0, "1"),
        ])  # fmt: skip
        write_atomically(plot, bars(title, [group]).encode())
    note = Text(
        "median of the rounds; seconds are the least and the most; per core: in processor time",
        style="dim",
    )
    emit(value, as_json=as_json, render=Group(table, note))

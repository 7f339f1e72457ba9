"""`ppdd sweep`: a grid of distillations and seeds, resumable, side by side, summed up in one report."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import FAILED, JsonOption, complain, emit, err, parse_pairs
from ppdd_core.cli.dataset import parse_where
from ppdd_core.cli.distill import Device, Set, TestWhere, Where, resumes_when_there_is_room
from ppdd_core.detector.wording import mean_sd
from ppdd_core.errors import BadConfigError
from ppdd_core.presets import PRESETS

if TYPE_CHECKING:
    from ppdd_core.pipeline import Measured
    from ppdd_core.sweep.run import Standing


def sweep(
    data: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="Folder, ZIP or CSV manifest of X-rays.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the sweep: everything that is kept.")],
    ipc: Annotated[
        list[int], typer.Option("--ipc", help="Distilled images per class; may be repeated.")
    ],
    preset_name: Annotated[
        str, typer.Option("--preset", help="Starting point: " + ", ".join(PRESETS) + ".")
    ] = "quick",
    sigma: Annotated[
        list[float] | None, typer.Option("--sigma", help="σ; may be repeated, 0 = MTT.")
    ] = None,
    similarity: Annotated[
        list[str] | None,
        typer.Option("--similarity", help="What σ is compared with; may be repeated."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            metavar="NAME:KEY=VALUE,…",
            help="A changed recipe beside the recipe itself, at every point of the grid; may be repeated.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="random_real, k_centre or full_data; may be repeated. Default: the recipe's.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.", min=1, max=1000)] = 3,
    first_seed: Annotated[int, typer.Option(help="The first of them.", min=0)] = 0,
    where: Where = None,
    test_where: TestWhere = None,
    settings: Set = None,
    on: Annotated[
        str,
        typer.Option(
            help="Report on test images, or on validation: to choose recipes, with no look at the test images."
        ),
    ] = "test",
    device: Device = "auto",
    processes: Annotated[
        int,
        typer.Option(
            help="Distillations side by side; cores are split between them. 0 = one per GPU, one on the CPU.",
            min=0,
        ),
    ] = 0,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the report; default: --out.")
    ] = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            help="Estimate every recipe before, to compare with what it takes (half a minute each)."
        ),
    ] = True,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Compute nothing: report what is there so far.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Distil a grid of recipes with several seeds and report it against real images. Run again, it goes on.

    Each seed has its own split and teachers, shared by the cells whose teacher settings agree. Nothing is chosen by
    test images. A larger grid in the same folder computes only what is new.
    """
    if on not in ("test", "validation"):
        raise BadConfigError(f"--on must be test or validation, got {on!r}")
    rows, test_rows = parse_where(where), parse_where(test_where, "--test-where")
    from ppdd_core.sweep.grid import Grid, parse_variant

    grid = Grid(
        preset=preset_name,
        per_class=tuple(dict.fromkeys(ipc)),
        seeds=tuple(range(first_seed, first_seed + seeds)),
        sigmas=tuple(dict.fromkeys(sigma or ())),
        similarities=tuple(dict.fromkeys(similarity or ())),
        settings=parse_pairs("--set", settings or []),
        variants=tuple(parse_variant(text) for text in variant or []),
        baselines=tuple(dict.fromkeys(baseline)) if baseline else None,
    )
    from ppdd_core.pipeline import Source
    from ppdd_core.sweep.table import failed
    from ppdd_core.sweep.whole import sweep as run_sweep

    with _bar() as show, resumes_when_there_is_room(out):
        value = run_sweep(
            grid,
            Source(path=data, where=rows, test_where=test_rows),
            out,
            report_to=report or out,
            command=_command(grid, data, rows, test_rows, on, calibrate=calibrate),
            on=_measured(on),
            device_name=device,
            processes=processes,
            calibrate=calibrate,
            compute=not report_only,
            on_standing=show,
        )
    emit(value, as_json=as_json, render=_summary(value, report or out))
    rows_of_real = [row for row in value["figures"]["table"] if row["kind"] in ("real", "all")]
    cells = [*value["figures"]["cells"], *(one for row in rows_of_real for one in row["without"])]
    reasons = [one["why"] for one in cells if failed(one)]
    if reasons:
        complain(f"{len(reasons)} of the grid's cells failed: {'; '.join(dict.fromkeys(reasons))}")
        raise typer.Exit(FAILED)


def _measured(on: str) -> Measured:
    return "test" if on == "test" else "validation"


def _command(
    grid: Any,
    data: Path,
    where: Mapping[str, str],
    test_where: Mapping[str, str],
    on: str,
    *,
    calibrate: bool,
) -> str:
    """Return the command that gives this report, without where things lie on this machine."""
    words = ["ppdd", "sweep", "--data", data.name, "--preset", grid.preset]
    for option, pairs in (
        ("--where", where),
        ("--test-where", test_where),
        ("--set", grid.settings),
    ):
        for name, value in pairs.items():
            words += [option, f"{name}={value}"]
    repeated: tuple[tuple[str, Any], ...] = (
        ("--ipc", grid.per_class),
        ("--sigma", [f"{one:g}" for one in grid.sigmas]),
        ("--similarity", grid.similarities),
        ("--baseline", grid.baselines or ()),
    )
    for option, values in repeated:
        for value in values:
            words += [option, str(value)]
    for one in grid.variants:
        changes = ",".join(f"{name}={value}" for name, value in one.settings.items())
        words += ["--variant", f"{one.name}:{changes}"]
    words += ["--seeds", str(len(grid.seeds))]
    if grid.seeds[0]:
        words += ["--first-seed", str(grid.seeds[0])]
    if on != "test":
        words += ["--on", on]
    if not calibrate:
        words += ["--no-calibrate"]
    return shlex.join([*words, "--out", "sweep"])


@contextmanager
def _bar() -> Iterator[Callable[[Standing], None]]:
    """Show a bar for the whole grid on stderr; a line per finished piece where there is no terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        whole = bar.add_task("sweep", total=1.0)
        below: list[Any] = []

        def show(standing: Standing) -> None:
            failed = f", {standing.failed} failed" if standing.failed else ""
            title = f"sweep: {standing.done} of {standing.total} pieces{failed}"
            bar.update(whole, completed=standing.share, description=title)
            if standing.finished and not err.is_terminal:
                done = standing.done + standing.failed
                err.print(Text(f"[{done}/{standing.total}] {standing.finished}"), soft_wrap=True)
            for task in below[len(standing.running) :]:
                bar.update(task, visible=False)
            for place, text in enumerate(standing.running):
                if place == len(below):
                    below.append(bar.add_task("", total=None))
                bar.update(below[place], description=f"  {text}", visible=True)

        yield show


def _summary(value: Mapping[str, Any], folder: Path) -> RenderableType:
    figures = value["figures"]
    table = Table(
        "trained on", "per class", "networks", "accuracy", "balanced accuracy", "macro AUROC",
        title=f"on {figures['measured_on']} images", title_justify="left",
    )  # fmt: skip
    for row in sorted(figures["table"], key=lambda row: row["images_per_class"] or 10**6):
        per_class = row["images_per_class"]
        other = row["architecture"] not in (None, figures["table"][0]["architecture"])
        table.add_row(
            row["label"] + (f" ({row['architecture']})" if other else ""),
            "all" if per_class is None else str(per_class),
            str(row["networks"]),
            *(mean_sd(row[name]) for name in ("accuracy", "balanced_accuracy", "macro_auroc")),
            style="bold" if row["kind"] in ("distilled", "best") else None,
        )
    return Group(table, Text(f"report: {folder / 'report.html'}"))

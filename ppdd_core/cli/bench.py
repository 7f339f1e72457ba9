"""`ppdd bench`: how fast this machine distils, alone or beside the public MTT code."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.benchmark.case import Case, check_reference
from ppdd_core.benchmark.compare import Contestant, Standing, compare, ratios, same_gradient
from ppdd_core.benchmark.plot import Group as Bars
from ppdd_core.benchmark.plot import bars
from ppdd_core.cli.bench_ingest import Plot, ingest
from ppdd_core.cli.bench_pipeline import pipeline
from ppdd_core.cli.console import JsonOption, emit, err, progress_bar
from ppdd_core.config import Engine
from ppdd_core.data.files import write_atomically
from ppdd_core.errors import BadConfigError

app = typer.Typer(
    help="Benchmarks: speed and memory here, beside the public MTT code where it is given.",
    no_args_is_help=True,
)

Reference = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="A clone of GeorgeCazenavette/mtt-distillation; without it, ours alone."
    ),
]
Size = Annotated[int, typer.Option(help="Pixels of a side.", min=8, max=512)]
Width = Annotated[int, typer.Option(help="Channels of the ConvNet.", min=1, max=1024)]
Depth = Annotated[int, typer.Option(help="Blocks of the ConvNet.", min=1, max=8)]
Batch = Annotated[int, typer.Option(help="Images of a mini-batch.", min=1, max=4096)]
Repeats = Annotated[int, typer.Option(help="Repeats in each process.", min=1)]
Rounds = Annotated[int, typer.Option(help="Processes of each side, in turns.", min=1)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")]


@app.command()
def step(
    reference: Reference = None,
    size: Size = 64,
    width: Width = 64,
    depth: Depth = 4,
    batch: Batch = 20,
    student_steps: Annotated[
        list[int] | None,
        typer.Option(
            "--steps", help="J: student steps; may be repeated, ours is then measured at each."
        ),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", help="reverse (default) or unroll; may be repeated."),
    ] = None,
    repeats: Repeats = 3,
    rounds: Rounds = 2,
    device: Device = "cpu",
    plot: Plot = None,
    as_json: JsonOption = False,
) -> None:
    """Time one distillation step and its peak memory: J student steps and the gradients through them."""
    case = Case(
        what="step", side="ppdd", image_size=size, width=width, depth=depth, batch=batch,
        repeats=repeats, device=_checked(device), reference=_folder(reference),
    )  # fmt: skip
    ours = [
        replace(case, engine=_engine(name), student_steps=count)
        for name in engines or ["reverse"]
        for count in student_steps or [case.student_steps]
    ]
    case = ours[0]
    contestants = [
        Contestant("ours" if one is case else f"ours, {one.engine}, J = {one.student_steps}", one)
        for one in ours
    ]
    if reference is not None:
        contestants.append(Contestant("MTT", replace(case, side="reference")))
    title = f"a step of {student_steps_of(case)}"
    _run(
        title, "step", contestants, rounds, "MTT" if reference else "ours", plot, as_json=as_json,
        alike=[contestants[-1], contestants[0]] if reference else [],
    )  # fmt: skip


@app.command()
def teachers(
    reference: Reference = None,
    size: Size = 64,
    width: Width = 64,
    depth: Depth = 4,
    batch: Batch = 256,
    images: Annotated[int, typer.Option(help="Real images of an epoch.", min=1)] = 1024,
    repeats: Repeats = 2,
    rounds: Rounds = 2,
    device: Device = "cpu",
    plot: Plot = None,
    as_json: JsonOption = False,
) -> None:
    """Count the images per second of teacher training, with augmentation, on all cores."""
    case = Case(
        what="teachers", side="ppdd", image_size=size, width=width, depth=depth, batch=batch, images=images,
        repeats=repeats, device=_checked(device), reference=_folder(reference),
    )  # fmt: skip
    cores = os.cpu_count() or 1 if case.device == "cpu" else 1
    one_each = 1 if case.device == "cpu" else 0
    contestants = [Contestant("ours", case, cores, one_each)]
    if reference is not None:
        other = replace(case, side="reference")
        contestants.append(Contestant("MTT", other))
        if cores > 1:
            contestants.append(Contestant("MTT, one a core", other, cores, one_each))
    title = f"teachers: ConvNet D{depth} W{width}, {size} px, mini-batches of {batch}, {images} images an epoch"
    _run(
        title,
        "teachers",
        contestants,
        rounds,
        "MTT" if reference else "ours",
        plot,
        as_json=as_json,
    )


app.command("ingest")(ingest)
app.command("pipeline")(pipeline)


# ------------------------------------------------------------------------------------------- shared


def student_steps_of(case: Case) -> str:
    """Return what a step's case is, in words."""
    return (
        f"ConvNet D{case.depth} W{case.width}, {case.image_size} px, J = {case.student_steps}, "
        f"{case.batch} images, float32"
    )


def _engine(name: str) -> str:
    if name not in get_args(Engine):
        raise BadConfigError(f"--engine must be one of {', '.join(get_args(Engine))}, got {name!r}")
    return name


def _folder(reference: Path | None) -> str:
    if reference is None:
        return ""
    check_reference(reference)
    return str(reference.absolute())


def _checked(device: str) -> str:
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise BadConfigError(f"--device must be cpu or cuda, got {device!r}")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise BadConfigError("--device cuda: torch sees no CUDA device on this machine")
    return device


def _run(
    title: str,
    what: str,
    contestants: Sequence[Contestant],
    rounds: int,
    against: str,
    plot: Path | None,
    *,
    as_json: bool,
    alike: Sequence[Contestant] = (),
) -> None:
    err.print(f"{title} on {contestants[0].case.device}", style="bold")
    agreement: dict[str, float] = {}
    if alike:
        with tempfile.TemporaryDirectory() as folder:
            agreement = same_gradient(alike, folder)
    with progress_bar("measuring") as update:
        standings = compare(contestants, rounds, update)
    shares = ratios(standings, against)
    value: dict[str, Any] = {
        "what": title,
        "cores": os.cpu_count(),
        "against": against,
        "results": [one.to_dict(what) | {"ratio": dict(shares[one.name])} for one in standings],
    }
    if agreement:
        value["relative_difference_of_gradients"] = agreement[contestants[0].name]
    if plot is not None:
        write_atomically(plot, _bars(title, what, standings, shares, against).encode())
    emit(value, as_json=as_json, render=_table(title, what, standings, shares, agreement))


def _bars(
    title: str,
    what: str,
    standings: Sequence[Standing],
    shares: Mapping[str, Mapping[str, float]],
    against: str,
) -> str:
    heading, share = (
        ("time of a step", "time") if what == "step" else ("images per second", "throughput")
    )
    groups = [
        Bars(
            f"{text}, as a share of that of {against}",
            [(one.name, shares[one.name][key], f"{shares[one.name][key]:.2f} ×") for one in standings],
        )
        for text, key in ((heading, share), ("peak memory", "peak_memory"))
    ]  # fmt: skip
    return bars(title, groups, f"on {standings[0].device}; medians")


def _table(
    title: str, what: str, standings: Sequence[Standing], shares: Any, agreement: dict[str, float]
) -> RenderableType:
    share, word = ("time", "time") if what == "step" else ("throughput", "speed")
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    rates = ["GFLOP/s", "of peak"] if what == "step" else ["images/s", "GFLOP/s", "of peak"]
    for name in ("seconds", *rates, "peak MiB", f"{word} ×", "mem ×"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in standings:
        table.add_row(
            one.name, f"{one.seconds:.3f} ± {one.spread:.3f}",
            *([f"{one.images_per_second:.0f}"] if what == "teachers" else []),
            f"{one.gflops:.1f}", f"{one.gflops / one.convolution_peak:.0%}",
            f"{one.peak_bytes / 2**20:,.0f}", f"{shares[one.name][share]:.2f}",
            f"{shares[one.name]['peak_memory']:.2f}",
        )  # fmt: skip
    peak = max(one.convolution_peak for one in standings)
    notes = [
        f"median ± half the distance between the quartiles; on {standings[0].device}",
        f"of peak: of a 3x3 convolution's GFLOP/s, measured in the same processes (at most {peak:.0f})",
    ]
    if agreement:
        notes.append(
            f"the same gradients as MTT's, in float64, to {max(agreement.values()):.1e} (relative)"
        )
    return Group(table, *(Text(note, style="dim") for note in notes))

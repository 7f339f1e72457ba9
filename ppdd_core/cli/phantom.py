"""`ppdd phantom`: draw a dataset of chest X-rays that no patient stands behind."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.arguments import checked_seed, in_the_way, readable
from ppdd_core.cli.console import JsonOption, emit, progress_bar
from ppdd_core.data.phantom import CLASSES, LARGEST, SITES, SMALLEST, images_of, write_phantoms
from ppdd_core.errors import BadConfigError, SourceError

app = typer.Typer(help="Drawn chest X-rays for demos and tests.", no_args_is_help=True)


@app.callback()
def _phantom() -> None:
    """Draw chest X-rays for demos and tests; there is no patient behind any of them."""


@app.command()
def write(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder to write: new, or empty.")
    ],
    patients: Annotated[
        int | None, typer.Option(help="How many patients, 2 images each on average; default 1000.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Instead of --patients: how many images.")
    ] = None,
    size: Annotated[int, typer.Option(help=f"Image side in pixels, {SMALLEST} to {LARGEST}.")] = 64,
    seed: Annotated[
        int,
        typer.Option(
            callback=checked_seed,
            help="Another seed gives other patients; the same one, the same files.",
        ),
    ] = 0,
    hospital: Annotated[
        str, typer.Option(help=f"Whose machine and people: {', '.join(SITES)}.")
    ] = "a",
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Equal classes, instead of the paper's uneven ones.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write drawn chest X-rays as a dataset folder: class folders and manifest.csv."""
    if patients is not None and images is not None:
        raise BadConfigError("give --patients or --images, not both")
    if blocking := in_the_way(folder):
        raise SourceError(
            f"{readable(folder)} cannot be made, because {readable(blocking)} is not a folder"
        )
    proportions = dict.fromkeys(CLASSES, 1.0) if balanced else None
    count = images
    if count is None:
        wanted = 1000 if patients is None else patients
        count = images_of(wanted, seed=seed, site=hospital, proportions=proportions)
    with progress_bar("drawing") as update:
        write_phantoms(
            folder,
            images=count,
            image_size=size,
            seed=seed,
            site=hospital,
            proportions=proportions,
            on_progress=update,
        )
    value = _counts(folder) | {"image_size": size, "seed": seed, "hospital": hospital}
    emit(value, as_json=as_json, render=_table(value))


def _counts(folder: Path) -> dict[str, Any]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    counted = Counter((row["label"], row["split"]) for row in rows)
    return {
        "folder": readable(folder),
        "images": len(rows),
        "patients": len({row["patient_id"] for row in rows}),
        "classes": {
            name: {split: counted[name, split] for split in ("train", "test")} for name in CLASSES
        },
    }


def _table(value: dict[str, Any]) -> Group:
    table = Table("class", box=None)
    table.add_column("train", justify="right")
    table.add_column("test", justify="right")
    for name, count in value["classes"].items():
        table.add_row(name, str(count["train"]), str(count["test"]))
    return Group(
        Text(f"{value['folder']}: {value['images']} images of {value['patients']} drawn patients"),
        table,
    )

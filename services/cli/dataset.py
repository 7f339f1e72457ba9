"""`ppdd dataset …` at a node: register, upload, list and remove its source datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit, parse_pairs, progress_bar, remark
from ppdd_core.errors import BadConfigError
from services.cli.program import Commands
from services.cli.remote import Node, known_node

app = Commands()

NodeOption = Annotated[
    str | None,
    typer.Option("--node", metavar="URL", help="Another node than that of `ppdd login`."),
]
NameOption = Annotated[
    str, typer.Option(help="Name at the node: lower-case letters, digits, `.`, `_`, `-`.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="COL=VALUE", help="Only rows of the manifest with this value."),
]


@app.command()
def register(
    path: Annotated[
        str, typer.Argument(help="Path below one of the node's data roots, as the node sees it.")
    ],
    name: NameOption,
    where: WhereOption = None,
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Register images that the node can read: a folder, ZIP or CSV manifest. Nothing is copied."""
    rows = parse_pairs("--where", where or [], "COLUMN=VALUE")
    with known_node(node_url) as node:
        made = node.post("/datasets", {"name": name, "path": path, "rows": rows})
    emit(made, as_json=as_json, render=_next(made["name"]))


@app.command()
def upload(
    path: Annotated[
        Path, typer.Argument(help="ZIP of class folders, or of images with a manifest.csv.")
    ],
    name: NameOption,
    where: WhereOption = None,
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a ZIP of images to the node of this hospital."""
    parse_pairs("--where", where or [], "COLUMN=VALUE")
    if not path.is_file():
        raise BadConfigError(
            f"{path} is not a file; put the images into a ZIP, or use `ppdd dataset register`"
        )
    size = path.stat().st_size
    with known_node(node_url) as node, path.open("rb") as file, progress_bar("uploading") as update:
        made = node.send(
            "/datasets/uploads", file, media_type="application/zip", on_progress=lambda sent: update(sent, size),
            name=name, where=where,
        )  # fmt: skip
    emit(made, as_json=as_json, render=_next(made["name"]))


@app.command("list")
def list_datasets(node_url: NodeOption = None, as_json: JsonOption = False) -> None:
    """List the node's source datasets."""
    with known_node(node_url) as node:
        rows = list(node.rows("/datasets"))
    table = Table("name", "state", "images", "title")
    for row in rows:
        images = row.get("images")
        table.add_row(
            row["name"], row["state"], "" if images is None else f"{images:,}", Text(row["title"])
        )
    emit({"items": rows}, as_json=as_json, render=table)


@app.command()
def remove(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name or id.")],
    node_url: NodeOption = None,
) -> None:
    """Remove a dataset from the node. Images below a data root are not touched."""
    with known_node(node_url) as node:
        node.delete(f"/datasets/{find(node, dataset)}")
    remark("removed")


def find(node: Node, wanted: str) -> str:
    """Return the id of the dataset of this name or id; BadConfigError where the node has none."""
    for row in node.rows("/datasets"):
        if wanted in (row["name"], row["id"]):
            return str(row["id"])
    raise BadConfigError(f"the node has no dataset {wanted!r}; see: ppdd dataset list")


def _next(name: str) -> Text:
    return Text(f"registered as {name}; next: ppdd job check {name}")

"""`ppdd package …` at a node: list, release, yank and download what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit, remark
from ppdd_core.errors import BadConfigError
from services.cli.program import Commands
from services.cli.remote import known_node

app = Commands()

NodeOption = Annotated[
    str | None,
    typer.Option("--node", metavar="URL", help="Another node than that of `ppdd login`."),
]
Reference = Annotated[
    str, typer.Argument(metavar="SITE/NAME@VERSION", help="One version of a package.")
]


@app.command("list")
def list_packages(
    search: Annotated[str | None, typer.Option(help="Part of a name.")] = None,
    state: Annotated[str | None, typer.Option(help="draft, released, yanked or held.")] = None,
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the packages that the node holds, each with its newest version."""
    with known_node(node_url) as node:
        rows = list(node.rows("/packages", q=search, state=state))
    table = Table("package", "state", "privacy", "images", "classes", "size")
    for row in rows:
        newest = row["newest"]
        table.add_row(
            f"{row['site']}/{row['name']}@{newest['version']}", newest["state"], newest["verdict"],
            f"{newest['images_per_class']} per class, {newest['image_size']} px", Text(", ".join(newest["classes"])),
            f"{newest['archive_size'] / 1e6:.1f} MB",
        )  # fmt: skip
    emit({"items": rows}, as_json=as_json, render=table)


@app.command()
def release(
    reference: Reference,
    override: Annotated[
        str | None,
        typer.Option(
            metavar="REASON", help="Set a failed privacy verdict aside; recorded and shown."
        ),
    ] = None,
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Release a draft, so that other hospitals may pull it. Refused where its privacy report does not pass."""
    with known_node(node_url) as node:
        found = node.post(f"{address(reference)}/release", {"override_reason": override})
    emit(found, as_json=as_json, render=Text(f"{reference} is released"))


@app.command()
def yank(
    reference: Reference,
    reason: Annotated[str, typer.Option(help="Why; other hospitals are told.")],
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a released version back. There is no way back from that."""
    with known_node(node_url) as node:
        found = node.post(f"{address(reference)}/yank", {"reason": reason})
    emit(found, as_json=as_json, render=Text(f"{reference} is yanked"))


@app.command()
def download(
    reference: Reference,
    out: Annotated[Path, typer.Option(help="File to write.")],
    node_url: NodeOption = None,
) -> None:
    """Download a version as one ZIP; `ppdd package verify` checks it."""
    with known_node(node_url) as node:
        node.download(f"{address(reference)}/archive", out)
    remark(f"wrote {out}; next: ppdd package verify {out}")


def address(reference: str) -> str:
    """Return where a node has `site/name@version`; BadConfigError for another form."""
    package, at, version = reference.partition("@")
    site, slash, name = package.partition("/")
    if not (at and slash and site and name and version) or "/" in name + version:
        raise BadConfigError(
            f"write a package as SITE/NAME@VERSION, for example hospital-a/cxr@1.0.0; got {reference!r}"
        )
    return f"/packages/{site}/{name}/versions/{version}"

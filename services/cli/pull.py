"""`ppdd pull`: let the node fetch a released package from another hospital's node, verified before it counts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppdd_core.cli.arguments import checked_key
from ppdd_core.cli.console import JsonOption, emit
from services.cli.package import address
from services.cli.program import Commands
from services.cli.remote import known_node

app = Commands()


@app.command()
def pull(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Address of the other hospital's node.")
    ],
    reference: Annotated[str, typer.Argument(metavar="SITE/NAME@VERSION", help="What to fetch.")],
    key: Annotated[
        str,
        typer.Option(
            metavar="FINGERPRINT",
            help="The other hospital's key, learned from them by another way.",
        ),
    ],
    token_file: Annotated[
        Path, typer.Option(help="File with the token that the other hospital gave out.")
    ],
    node_url: Annotated[
        str | None,
        typer.Option("--node", metavar="URL", help="Another node than that of `ppdd login`."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch a package from another hospital into this hospital's node. A broken transfer goes on where it broke."""
    from services.cli.job import describe
    from services.cli.watch import watch

    address(reference)  # refuses another form before anything is asked
    token = token_file.read_text(encoding="utf-8").strip()
    with known_node(node_url) as node:
        made = node.post(
            "/pulls", {"url": url, "package": reference, "token": token, "key": checked_key(key)}
        )
        job = watch(node, made["id"])
    emit(job, as_json=as_json, render=describe(job))

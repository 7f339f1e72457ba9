"""`ppdd backup`: write a whole node, keys included, into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit, progress_bar, remark
from services.cli.program import Commands

app = Commands()


@app.command()
def backup(
    out: Annotated[Path, typer.Argument(help="The file to write; never over another one.")],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="The node's folder; default: PPDD_DATA_DIR, or the usual one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write database, objects and keys of the node into one file; the node may run meanwhile.

    The file holds the site's private keys: who has it can sign as this hospital. Only its owner may read it; keep it
    as you keep the keys. `ppdd restore` brings it back, also into another kind of database or store.
    """
    from services.backup import back_up
    from services.kit.resources import open_resources
    from services.settings import load_settings

    settings = load_settings(
        None, **({} if data_dir is None else {"data_dir": data_dir.absolute()})
    )
    with open_resources(settings) as resources, progress_bar("copying objects") as update:
        made = back_up(resources, out, update)
    said = f"{made.rows:,} rows, {made.objects:,} objects, {made.packages:,} packages, {made.bytes / 1e6:,.1f} MB"
    emit(made.to_dict(), as_json=as_json, render=Text(f"{out}: {said}"))
    remark("the file holds private keys: keep it where only you can read it")

"""`ppdd restore`: bring a backup into an empty node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit, progress_bar
from services.cli.program import Commands

app = Commands()


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="What `ppdd backup` wrote.")],
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the new node; default: PPDD_DATA_DIR, or the usual one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a backup into an empty node: hashes, signatures of packages and the audit log are checked on the way.

    Broken off, it can be run again. People log in with the passwords they had; logins that were open have ended.
    """
    from services.backup import restore as run
    from services.cli.running import alone_in
    from services.settings import load_settings

    settings = load_settings(
        None, **({} if data_dir is None else {"data_dir": data_dir.absolute()})
    )
    with alone_in(settings.data_dir), progress_bar("restoring") as update:
        found = run(settings, source, update)
    said = f"{found.rows:,} rows, {found.objects:,} objects, {found.packages:,} packages of {found.site_id}"
    emit(
        found.to_dict(),
        as_json=as_json,
        render=Text(
            f"restored from {found.made_at}: {said}; every signature and the audit log hold"
        ),
    )

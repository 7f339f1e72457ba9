"""`ppdd doctor`: look at every part of a node, or at the way to another one, and say what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import FAILED, JsonOption, emit
from ppdd_core.errors import BadConfigError
from services.cli.program import Commands

if TYPE_CHECKING:
    from services.doctor import Finding

app = Commands()

STYLES = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}


@app.command()
def doctor(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="The node's folder; default: PPDD_DATA_DIR, or the usual one."),
    ] = None,
    peer: Annotated[
        str | None, typer.Option(metavar="URL", help="Walk the way to another node instead.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at settings, keys, database, store, broker, worker, disk, GPU and certificate; exit code 1 if one fails.

    With --peer: the other node's name, connection, TLS, key and clock, as seen from here.
    """
    findings = list(_findings(data_dir, peer))
    value = {
        "ok": all(one.result != "FAIL" for one in findings),
        "findings": [
            {"part": one.part, "result": one.result, "seen": one.seen, "fix": one.fix}
            for one in findings
        ],
    }
    emit(value, as_json=as_json, render=_table(findings))
    if not value["ok"]:
        raise typer.Exit(FAILED)


def _findings(data_dir: Path | None, peer: str | None) -> Iterable[Finding]:
    from services.doctor import Finding, examine, examine_peer, good
    from services.kit.resources import open_resources
    from services.settings import load_settings

    try:
        settings = load_settings(
            None, **({} if data_dir is None else {"data_dir": data_dir.absolute()})
        )
    except BadConfigError as err:
        yield Finding("settings", "FAIL", str(err), "docs/settings.md lists every setting")
        return
    yield good("settings", "all known, no weak secrets")
    if peer is not None:
        yield from examine_peer(settings, peer)
    elif not settings.data_dir.is_dir():
        missing = f"there is no node in {settings.data_dir}"
        yield Finding("data folder", "FAIL", missing, "`ppdd node up` makes one")
    else:
        with open_resources(settings) as resources:
            yield from examine(resources)


def _table(findings: Iterable[Finding]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for one in findings:
        said = Text(one.seen)
        if one.fix:
            said.append(f"\n→ {one.fix}", style="italic")
        table.add_row(Text(one.result, style=STYLES[one.result]), Text(one.part), said)
    return table

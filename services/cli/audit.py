"""`ppdd audit`: check and export the audit log of a node on this machine, or an export anywhere. No node need run."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from sqlalchemy import inspect
from sqlalchemy.exc import DBAPIError

from ppdd_core.cli.console import REFUSED, JsonOption, emit, remark
from ppdd_core.errors import BadConfigError, PpddError
from ppdd_core.package.signature import parse_fingerprint
from services.audit import anchoring, service
from services.audit.actor import Actor
from services.audit.chain import Verification
from services.audit.models import AuditEvent
from services.kit.resources import Resources, open_resources
from services.settings import load_settings

app = typer.Typer(
    name="audit", help="Check and export the audit log of this node.", no_args_is_help=True
)

DataDirOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the node; default: PPDD_DATA_DIR, or the usual one."),
]


@app.command()
def verify(
    data_dir: DataDirOption = None,
    export: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Check this export instead of the node's own log."
        ),
    ] = None,
    key: Annotated[
        str, typer.Option(help="With --export: fingerprint of the site that made it.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Check that no event was edited, removed, moved or cut off. Exit code 3: something is wrong."""
    if (export is None) != (not key):
        raise BadConfigError("--export and --key belong together: whose log should it be?")
    if export is None:
        with _node(data_dir) as resources:
            found = anchoring.verify_node(resources, _operator())
    else:
        fingerprint = parse_fingerprint(key)
        with export.open(encoding="utf-8", errors="surrogateescape") as lines:
            found = service.verify_lines(lines, fingerprint)
    emit(found.to_dict(), as_json=as_json, render=Text(_summary(found)))
    for line in (*found.remarks, *_unproven(found)):
        remark(f"note: {line}")
    if not found.intact:
        raise typer.Exit(REFUSED)


@app.command()
def export(
    data_dir: DataDirOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Write to this new file; default: standard output.")
    ] = None,
) -> None:
    """Write every event as one line of JSON, and the signed head as the last: `audit verify --export` checks it."""
    with _node(data_dir) as resources:
        last, head = anchoring.begin_export(resources, _operator())
        lines = service.export_lines(resources.reading, last, head)
        if out is None:
            sys.stdout.writelines(lines)
        else:
            with out.open("x", encoding="utf-8") as file:
                file.writelines(lines)
            remark(f"{last} events written to {out}; they are signed with the key {head.key}")


@contextmanager
def _node(data_dir: Path | None) -> Iterator[Resources]:
    """Yield the resources of the node on this machine; BadConfigError where there is none."""
    settings = load_settings(None, **({} if data_dir is None else {"data_dir": data_dir}))
    database = settings.database_url
    file = Path(database.removeprefix("sqlite:///")) if database.startswith("sqlite") else None
    with open_resources(settings) as resources:
        if (file is not None and not file.exists()) or not _has_log(resources):
            raise BadConfigError(
                f"there is no node in {file.parent if file else database}; give its folder with --data-dir, or its "
                "database in PPDD_DATABASE__URL"
            )
        yield resources


def _has_log(resources: Resources) -> bool:
    try:
        return inspect(resources.engine).has_table(AuditEvent.__tablename__)
    except DBAPIError as err:
        raise PpddError(f"the database does not answer: {type(err.orig).__name__}") from err


def _operator() -> Actor:
    """Return who sits at this machine, as its operating system names them."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        name = "unknown"
    return Actor("system", "command-line", f"{name} at the command line")


def _summary(found: Verification) -> str:
    if not found.intact:
        return f"BROKEN at event {found.first_bad}: {found.problem}"
    if found.anchored_seq == found.last_seq:
        return f"intact: {found.events} events, all of them under a signed head"
    return f"intact: {found.events} events, {found.anchored_seq} of them under a signed head"


def _unproven(found: Verification) -> Iterator[str]:
    if found.intact and found.anchored_seq == 0 and found.events:
        yield (
            "no signed head vouches for this log: what is there is whole, but an end that was cut off would leave no "
            "trace"
        )

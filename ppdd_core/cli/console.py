"""What every command shares: data on stdout, progress and errors on stderr, exit codes.

Exit codes: 0 done; 1 failed; 2 wrong usage (bad option or recipe); 3 refused by a check (a package that fails
verification, a dataset with findings that block, a file that is unsafe to read); 130 stopped by Ctrl-C or SIGTERM:
`distill`, `teachers train` and `demo` say what is kept and go on when run again, other commands start anew. A failed
privacy verdict is none of these: the package is written, and a warning on stderr says what failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ppdd_core.data.names import shown
from ppdd_core.errors import BadConfigError

DONE, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130

out = Console()  # honours NO_COLOR
err = Console(stderr=True)

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")
]

OnProgress = Callable[[int, int], None]  # (done, total)


def complain(message: str) -> None:
    """Print an error for the person at the keyboard on stderr: plain text, wrapped by nobody."""
    err.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def remark(message: str) -> None:
    """Print what is no error, but not the result either, on stderr."""
    err.print(Text(message), soft_wrap=True)


def parse_pairs(option: str, given: Sequence[str], form: str = "NAME=VALUE") -> dict[str, str]:
    """Return `["hospital=a"]` as `{"hospital": "a"}`, without spaces around either.

    The first equals sign divides. Another form than `form`, or a name given twice, raises BadConfigError.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise BadConfigError(f"{option} {shown(text)}: write it as {form}")
        if name in found:
            raise BadConfigError(f"{option} names {shown(name)} twice; give it one value")
        found[name] = value.strip()
    return found


def emit(value: dict[str, Any], *, as_json: bool, render: RenderableType) -> None:
    """Print a command's result: JSON for programs, or `render` for people."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))
    else:
        out.print(render)


def bar_columns() -> tuple[ProgressColumn, ...]:
    """Return what every progress bar shows; tasks carry a field `note`."""
    return (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[..., None]]:
    """Show a bar with ETA on stderr; yields `update(done, total, note="")`.

    Without a terminal nothing is drawn, so logs stay readable.
    """
    with Progress(*bar_columns(), console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(done: int, total: int, note: str = "") -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update

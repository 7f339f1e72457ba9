"""The program `ppdd`: which commands there are, and what a refusal looks like at the keyboard.

Commands live beside this file, one module per noun; this file only names them. They raise our own
errors freely; here each becomes one message on stderr and an exit code. Nothing here imports torch.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from ppdd_core import __version__
from ppdd_core.cli import bench, dataset, detector, distill, package, phantom, sweep
from ppdd_core.cli.console import DONE, FAILED, INTERRUPTED, REFUSED, USAGE, complain, remark
from ppdd_core.cli.extension import ExtensibleGroup
from ppdd_core.errors import (
    BadConfigError,
    Interrupted,
    PackageError,
    PpddError,
    UnsafeSourceError,
)

app = typer.Typer(
    name="ppdd",
    cls=ExtensibleGroup,  # installed beside the library, the node adds commands of its own
    help="Distil chest X-ray datasets into a few synthetic images, and train detectors from them.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by a check, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback of a bug must not print the values of variables
)

# What there is, in the order of `ppdd --help`: the verbs that stand alone, then the nouns.
app.command()(distill.distill)
app.command()(distill.estimate)
app.command()(distill.presets)
app.command()(sweep.sweep)
app.add_typer(dataset.app, name="dataset", cls=ExtensibleGroup)
app.add_typer(distill.teachers_app, name="teachers")
app.add_typer(package.app, name="package", cls=ExtensibleGroup)
app.add_typer(detector.app, name="detector", cls=ExtensibleGroup)
app.add_typer(phantom.app, name="phantom")
app.add_typer(bench.app, name="bench")

# The first class that fits decides; the last row is every other refusal of ours.
EXIT_CODES: tuple[tuple[type[PpddError], int], ...] = (
    (Interrupted, INTERRUPTED),
    (BadConfigError, USAGE),
    (PackageError, REFUSED),
    (UnsafeSourceError, REFUSED),
    (PpddError, FAILED),
)

# What the machine refuses, as opposed to a bug: the person can act on it without a traceback.
MACHINE_ERRNOS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS),
        *(errno.EDQUOT, errno.ENOSPC),
        *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR),
    }
)

STOPPED = "stopped before it was done; run the same command again"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ppdd {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Distil chest X-ray datasets into a few synthetic images, and train detectors from them."""


def exit_code(error: PpddError) -> int:
    """Return the exit code of a refusal, as `console` documents them."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def main(arguments: Sequence[str] | None = None, *, program: typer.Typer = app) -> NoReturn:
    """Run `program` with `arguments` (default: those of the process) and leave with its exit code.

    A refusal of ours, a full disk, a missing permission, Ctrl-C and SIGTERM become one message on stderr;
    any other exception is a bug and keeps its traceback.
    """
    # Before torch is imported: threads wait briefly, then sleep. Spinning on costs a factor of three beside other
    # work, sleeping at once a factor of two without any (decision 0008).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    with _signals_interrupt() as received:
        try:
            program(None if arguments is None else list(arguments), prog_name="ppdd")
        except PpddError as error:
            say = remark if isinstance(error, Interrupted) else complain
            say(str(error))
            sys.exit(exit_code(error))
        except SystemExit as left:
            if left.code == INTERRUPTED:  # what typer makes of KeyboardInterrupt
                remark(STOPPED)
            raise
        except Exception as error:
            if received:  # an import or a library call cut short by the signal fails in its own way
                remark(STOPPED)
                sys.exit(INTERRUPTED)
            if not isinstance(error, OSError) or error.errno not in MACHINE_ERRNOS:
                raise
            where = f" ({error.filename})" if error.filename else ""
            complain(f"this machine refused: {error.strerror}{where}")
            sys.exit(FAILED)
    sys.exit(DONE)


@contextmanager
def _signals_interrupt() -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt, so that state is saved; yields those that came.

    Signals that the caller ignores stay ignored. Outside of the main thread nothing is changed.
    """
    received: list[int] = []

    def interrupt(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM)
        if threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) != signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer
from rich.table import Table

from ppdd_core import __version__
from ppdd_core.cli.console import DONE, FAILED, INTERRUPTED, REFUSED, USAGE, emit, progress_bar
from ppdd_core.cli.main import exit_code, main
from ppdd_core.errors import (
    BadConfigError,
    BadImageError,
    BadManifestError,
    CheckpointError,
    DigestMismatchError,
    Interrupted,
    PpddError,
    SignatureError,
    SourceError,
    TrainingError,
    UnsafeSourceError,
)


def program(trouble: BaseException | None) -> typer.Typer:
    """Return a program with one command that raises `trouble`."""
    made = typer.Typer(pretty_exceptions_enable=False)

    @made.command()
    def work(number: int = 0) -> None:
        if trouble:
            raise trouble
        typer.echo(f"worked {number}")

    return made


def leave(arguments: list[str], trouble: BaseException | None = None) -> object:
    """Run the program and return the code it leaves with."""
    with pytest.raises(SystemExit) as stop:
        main(arguments, program=program(trouble))
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadConfigError("sigma"), USAGE),
        (SourceError("no images"), FAILED),
        (BadImageError("cut short"), FAILED),
        (TrainingError("not finite"), FAILED),
        (CheckpointError("of another run"), FAILED),
        (UnsafeSourceError("leaves its root"), REFUSED),
        (SignatureError("by another key"), REFUSED),
        (DigestMismatchError("a.png", expected="0" * 64, actual="1" * 64), REFUSED),
        (BadManifestError(["no classes"]), REFUSED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PpddError) else "",
)
def test_a_refusal_is_one_message_on_stderr_and_its_exit_code(
    error: PpddError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave([], error) == code == exit_code(error)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {error}\n"


def test_an_interruption_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave([], Interrupted("stopped; run again to go on")) == INTERRUPTED
    assert capsys.readouterr().err == "stopped; run again to go on\n"


def test_the_exit_codes_are_the_documented_ones() -> None:
    assert (DONE, FAILED, USAGE, REFUSED, INTERRUPTED) == (0, 1, 2, 3, 128 + signal.SIGINT)


def test_every_error_of_ours_has_an_exit_code() -> None:
    def below(kind: type[PpddError]) -> list[type[PpddError]]:
        return [kind, *(deeper for child in kind.__subclasses__() for deeper in below(child))]

    for kind in below(PpddError):
        assert exit_code(kind.__new__(kind)) in {FAILED, USAGE, REFUSED, INTERRUPTED}


def test_a_message_is_shown_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    text = "no [bold]markup[/bold], [/x] no wrapping: " + "long " * 60 + "/a/b.png"
    leave([], SourceError(text))
    assert capsys.readouterr().err == f"error: {text}\n"


def test_ctrl_c_leaves_with_130_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave([], KeyboardInterrupt()) == INTERRUPTED
    assert capsys.readouterr().err == "stopped before it was done; run the same command again\n"


def test_sigterm_is_ctrl_c_while_a_command_runs_and_not_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = typer.Typer()

    @made.command()
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            typer.echo("state saved")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        main([], program=made)
    assert stop.value.code == INTERRUPTED
    shown = capsys.readouterr()
    assert shown.out == "state saved\n"
    assert shown.err.startswith("stopped before it was done")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_library_that_fails_because_of_the_signal_is_a_stop_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = typer.Typer(pretty_exceptions_enable=False)

    @made.command()
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("half initialised") from None

    with pytest.raises(SystemExit) as stop:
        main([], program=made)
    assert stop.value.code == INTERRUPTED
    assert capsys.readouterr().err.startswith("stopped before it was done")


def test_the_program_runs_outside_of_the_main_thread() -> None:
    codes: list[object] = []
    thread = threading.Thread(target=lambda: codes.append(leave(["--number", "1"])))
    thread.start()
    thread.join()
    assert codes == [DONE]


SIGNALLED_AT_IMPORT = """
import os, sys
module, number = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
class Trip:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Trip())
from ppdd_core.cli.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("ppdd_core.cli.main", "stopped before anything was done\n"),
        ("rich.table", "stopped before anything was done\n"),
        ("torch", "stopped before it was done; run the same command again\n"),
    ],
)
def test_a_signal_while_modules_load_is_one_line(
    module: str, said: str, number: signal.Signals, tmp_path: Path
) -> None:
    arguments = [module, str(int(number)), "estimate", str(tmp_path), "--ipc", "1"]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_AT_IMPORT, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (INTERRUPTED, "", said)


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ppdd_core.cli", "--version"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (DONE, f"ppdd {__version__}\n")


def test_a_full_disk_is_a_message_that_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave([], OSError(errno.ENOSPC, "No space left on device", "out/a.png")) == FAILED
    shown = "error: this machine refused: No space left on device (out/a.png)\n"
    assert capsys.readouterr().err == shown


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EISDIR, errno.ENOTDIR])
def test_a_path_that_is_something_else_is_a_message(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leave([], OSError(number, os.strerror(number), "out")) == FAILED
    assert capsys.readouterr().err == f"error: this machine refused: {os.strerror(number)} (out)\n"


@pytest.mark.parametrize(
    "bug", [ZeroDivisionError("a bug"), FileNotFoundError(errno.ENOENT, "not there", "x")]
)
def test_a_bug_keeps_its_traceback(bug: Exception) -> None:
    with pytest.raises(type(bug)):
        main([], program=program(bug))


def test_work_that_ends_well_leaves_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(["--number", "7"]) == DONE
    assert capsys.readouterr().out == "worked 7\n"


@pytest.mark.parametrize("arguments", [["--number", "seven"], ["--nonsense"], ["too", "many"]])
def test_wrong_usage_leaves_with_2(arguments: list[str]) -> None:
    assert leave(arguments) == USAGE


def test_version_is_shown_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == DONE
    assert capsys.readouterr().out == f"ppdd {__version__}\n"


def test_an_unknown_command_leaves_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["no-such-thing"])
    assert stop.value.code == USAGE
    assert "no-such-thing" in capsys.readouterr().err


def test_json_is_one_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"b": [1, 2.5], "a": "é"}, as_json=True, render=Table())
    assert json.loads(capsys.readouterr().out) == {"a": "é", "b": [1, 2.5]}


def test_json_refuses_numbers_that_json_does_not_have() -> None:
    with pytest.raises(ValueError, match="JSON"):
        emit({"loss": float("nan")}, as_json=True, render=Table())


def test_a_result_for_people_is_on_stdout_without_colours(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Table("class", "images")
    table.add_row("[bold red]COVID[/bold red]", "12")
    emit({}, as_json=False, render=table)
    shown = capsys.readouterr().out
    assert "COVID" in shown
    assert "\x1b" not in shown


def test_progress_draws_nothing_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("teachers") as update:
        update(1, 2, "acc 0.5")
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""

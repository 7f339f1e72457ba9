"""What a process prints becomes log lines: whole, bounded, without secrets, however the database does."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from services.jobs.service import MAX_LINE
from services.kit.db import Sessions
from worker import joblog
from worker.joblog import JobLog

Add = Callable[[Session, list[str]], None]


def kept(data: bytes, add: Add | None = None) -> list[str]:
    """Return the lines kept of what a process printed."""
    lines: list[str] = []

    def extend(_: Session, more: list[str]) -> None:
        lines.extend(more)

    read, write = os.pipe()
    with os.fdopen(read, "rb") as output:
        log = JobLog(Sessions(), add or extend, output)
        with os.fdopen(write, "wb") as printed:
            printed.write(data)
        log.close(20)
    return lines


def test_lines_are_kept_in_order() -> None:
    assert kept("one\ntwö\nthree".encode()) == ["one", "twö", "three"]


def test_secrets_are_blanked() -> None:
    (line,) = kept(b"GET http://user:pass@host/ with Bearer abc and ppdd_0123456789abcdef\n")
    assert "pass" not in line and "abc" not in line and "ppdd_0" not in line


def test_bytes_that_are_no_text_stop_nothing() -> None:
    assert kept(b"\xff\xfe\n") == ["\N{REPLACEMENT CHARACTER}" * 2]


def test_a_line_without_end_is_cut_up() -> None:
    lines = kept(b"x" * (10 * MAX_LINE))
    assert len(lines) == 3 and {len(line) for line in lines} == {MAX_LINE}


def test_what_is_too_much_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "FLUSH_SECONDS", 60.0)  # nothing is written in between
    lines = kept(b"line\n" * (joblog.MOST_WAITING + 7))
    assert len(lines) == joblog.MOST_WAITING + 1
    assert lines[-1] == "(7 lines were left out here)"


def test_lines_wait_for_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joblog, "FLUSH_SECONDS", 0.01)
    tries: list[list[str]] = []

    def flaky(_: Session, lines: list[str]) -> None:
        tries.append(lines)
        if len(tries) == 1:
            raise OperationalError("insert", {}, Exception("away"))

    kept(b"one\ntwo\n", flaky)
    assert [line for lines in tries[1:] for line in lines] == ["one", "two"]

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from services.kit.logging import configure, scrub
from services.settings import LogSettings

TOKEN = "ppdd_" + "Ab3-_" * 8


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"token {TOKEN} was used", "token [hidden] was used"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [hidden]"),
        ("redis://:geheim@host:6379/0", "redis://[hidden]@host:6379/0"),
        ("GET /b/k?X-Amz-Signature=0a1b2c&x=1", "GET /b/k?X-Amz-Signature=[hidden]&x=1"),
        ("ppdd_core is a package", "ppdd_core is a package"),
        ("https://host/path@v1", "https://host/path@v1"),
    ],
)
def test_secrets_inside_a_text_are_hidden(text: str, left: str) -> None:
    assert scrub(None, "info", {"event": text}) == {"event": left}


@pytest.mark.parametrize(
    "name", ["token", "password", "secret_key", "Authorization", "set-cookie", "totp", "patient_id"]
)
def test_fields_that_are_secrets_by_name_are_hidden(name: str) -> None:
    assert scrub(None, "info", {name: 123}) == {name: "[hidden]"}


def test_secrets_are_hidden_however_deep_they_lie() -> None:
    event = {"detail": {"count": 2, "password": "geheim", "list": [TOKEN, {"cookie": "x"}]}}
    assert scrub(None, "info", event) == {
        "detail": {"count": 2, "password": "[hidden]", "list": ["[hidden]", {"cookie": "[hidden]"}]}
    }


def test_a_line_is_json_with_its_fields_and_the_correlation_id(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogSettings(format="json"))
    structlog.contextvars.bind_contextvars(correlation_id="0123")
    structlog.get_logger("any").info("job.claimed", job_id="7", token=TOKEN)
    (line,) = _lines(capsys)
    assert line.pop("timestamp")
    assert line == {
        "event": "job.claimed",
        "level": "info",
        "job_id": "7",
        "token": "[hidden]",
        "correlation_id": "0123",
    }


def test_lines_of_libraries_look_alike_and_are_scrubbed(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json"))
    logging.getLogger("some.library").warning("cannot reach %s", "redis://:geheim@host/0")
    (line,) = _lines(capsys)
    assert (line["event"], line["level"]) == ("cannot reach redis://[hidden]@host/0", "warning")


def test_a_traceback_is_scrubbed(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json"))
    try:
        raise RuntimeError(f"bad token {TOKEN}")
    except RuntimeError:
        structlog.get_logger("any").exception("request.bug")
    (line,) = _lines(capsys)
    assert "RuntimeError: bad token [hidden]" in str(line["exception"])
    assert TOKEN not in json.dumps(line)


def test_lines_below_the_level_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="text", level="warning"))
    structlog.get_logger("any").info("quiet")
    structlog.get_logger("any").warning("loud")
    written = capsys.readouterr().err
    assert "quiet" not in written
    assert "loud" in written


def test_addresses_of_callers_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("uvicorn.error").setLevel(
        logging.CRITICAL
    )  # as a server set up earlier leaves it
    configure(LogSettings(format="text"))
    logging.getLogger("uvicorn.access").info("203.0.113.7 - GET /")
    logging.getLogger("uvicorn.error").warning("this is wrong")
    written = capsys.readouterr().err
    assert "203.0.113.7" not in written
    assert "this is wrong" in written


@pytest.mark.parametrize(("level", "written"), [("debug", True), ("info", False), ("error", False)])
def test_what_libraries_do_well_is_written_for_developers_only(
    capsys: pytest.CaptureFixture[str], level: Literal["debug", "info", "error"], written: bool
) -> None:
    configure(LogSettings(format="text", level="warning"))  # as a run before leaves it
    for name in ("uvicorn.error", "alembic.runtime.migration"):
        logging.getLogger(name).setLevel(logging.NOTSET)
        configure(LogSettings(format="text", level=level))
        logging.getLogger(name).info("all is well")
        assert ("all is well" in capsys.readouterr().err) == written

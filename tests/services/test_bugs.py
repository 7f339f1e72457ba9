"""An error that nobody caught: the answer looks like any other, the log says once what happened."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient
from prometheus_client import generate_latest

from services.app import create_app
from services.kit.headers import ALWAYS
from services.kit.logging import configure
from services.kit.metrics import REGISTRY
from services.kit.resources import Resources
from services.settings import LogSettings


def _fall(name: str) -> None:
    raise RuntimeError(f"a secret of {name}")


@pytest.fixture
def app(resources: Resources) -> FastAPI:
    """The node's API with two routes that have a bug."""
    made = create_app(resources)

    @made.get("/bug", tags=["test"])
    def _bug() -> None:
        _fall("somebody")

    @made.get("/late", tags=["test"])
    def _late() -> StreamingResponse:
        def lines() -> Iterator[bytes]:
            yield b"first"
            _fall("somebody")

        return StreamingResponse(lines())

    return made


@pytest.fixture
def log_lines() -> Iterator[io.StringIO]:
    """What is logged from here on, as JSON lines; afterwards logging is as it was."""
    root, written = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), root.level
    configure(LogSettings(level="warning", format="json"))
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(written)
    yield written
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_bug_has_every_header_and_one_log_line_with_its_traceback(
    app: FastAPI, log_lines: io.StringIO
) -> None:
    with TestClient(app) as client:  # one that would raise what reaches the server
        answer = client.get("/bug")
    told = answer.json()
    assert (answer.status_code, told["type"]) == (500, "/problems/internal")
    assert answer.headers["content-type"] == "application/problem+json"
    assert {name: answer.headers.get(name) for name in ALWAYS} == ALWAYS
    assert answer.headers["cache-control"] == "no-store"
    assert told["correlation_id"] == answer.headers["x-correlation-id"]
    assert "secret" not in answer.text
    (line,) = [json.loads(text) for text in log_lines.getvalue().splitlines()]
    assert (line["event"], line["correlation_id"]) == ("request.bug", told["correlation_id"])
    assert "in _fall" in line["exception"]
    assert "RuntimeError: a secret of somebody" in line["exception"]


def test_a_bug_is_counted_as_500(app: FastAPI) -> None:
    with TestClient(app) as client:
        client.get("/bug")
    counted = 'ppdd_requests_total{method="GET",operation="test__bug",status="500"}'
    assert counted in generate_latest(REGISTRY).decode()


def test_a_bug_after_the_answer_began_breaks_it_off(app: FastAPI) -> None:
    with TestClient(app) as client, pytest.raises(RuntimeError, match="a secret of somebody"):
        client.get("/late")

"""What is wrong, as HTTP says it: RFC 9457 problem documents, in one place.

Refusals are the classes in `errors`; errors of `ppdd_core` become problems by the table there. Anything else is a bug:
a 500 without detail, and a log line with it under the same correlation id, which is made here and never taken from the
caller.
"""

from __future__ import annotations

import contextvars
import inspect
import secrets
from collections.abc import Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ppdd_core import errors as core
from services.kit.errors import CORE, NotFoundError, ServiceError, TooLargeError

MEDIA_TYPE = "application/problem+json"
log = structlog.get_logger(__name__)
correlation: contextvars.ContextVar[str] = contextvars.ContextVar("correlation", default="")


class CorrelationMiddleware:
    """Give every request an id of ours, in the log's context and in the answer's headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name = secrets.token_hex(8)
        correlation.set(name)
        structlog.contextvars.bind_contextvars(correlation_id=name)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-correlation-id", name.encode()))
            await send(message)

        await self.app(scope, receive, answer)


class BugMiddleware:
    """Answer whatever nobody has caught, inside the middlewares that add headers to every answer and count it.

    The framework's own answer to an error lies outside of all of them: it would have no headers, and the error would be
    raised on into the server, which logs it once more. An answer that has begun cannot be taken back: there the error
    is raised on, and the server breaks the connection off.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except Exception as error:
            if begun:
                raise
            told = scope["app"].exception_handlers[Exception](Request(scope), error)
            response: Response = await told if inspect.isawaitable(told) else told
            await response(scope, receive, send)


def document(status: int, slug: str, title: str, detail: str, **facts: Any) -> dict[str, Any]:
    """Return a problem document."""
    return {
        "type": f"/problems/{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "correlation_id": correlation.get(),
        **facts,
    }


def respond(
    status: int,
    slug: str,
    title: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **facts: Any,
) -> JSONResponse:
    """Return a problem document as an answer."""
    return JSONResponse(
        document(status, slug, title, detail, **facts),
        status_code=status,
        headers=dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def register(app: FastAPI) -> None:
    """Let `app` answer every error as a problem document."""
    app.add_exception_handler(ServiceError, _service)
    app.add_exception_handler(core.PpddError, _core)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DBAPIError, _database)
    app.add_exception_handler(PoolTimeoutError, _no_connection)
    app.add_exception_handler(Exception, _bug)


def _service(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    if error.status >= 500:
        log.error("request.failed", slug=error.slug, detail=error.detail)
    return respond(
        error.status, error.slug, error.title, error.detail, headers=error.headers, **error.facts
    )


def _core(_request: Request, error: Exception) -> JSONResponse:
    _, status, slug, title = next(row for row in CORE if isinstance(error, row[0]))
    facts: dict[str, Any] = (
        {"problems": error.problems} if isinstance(error, core.BadManifestError) else {}
    )
    return respond(status, slug, title, str(error), **facts)


def _validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"where": "/".join(str(part) for part in one["loc"]), "problem": one["msg"]}
        for one in error.errors()
    ]
    detail = "; ".join(f"{one['where']}: {one['problem']}" for one in errors[:5])
    return respond(
        422, "invalid-request", "The request does not have the right shape", detail, errors=errors
    )


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    known = {
        404: ("not-found", NotFoundError.title),
        405: ("method-not-allowed", "This method is not allowed here"),
        413: (TooLargeError.slug, TooLargeError.title),
    }
    slug, title = known.get(error.status_code, ("http-error", "The request was refused"))
    return respond(error.status_code, slug, title, str(error.detail), headers=error.headers)


def _database(_request: Request, error: Exception) -> JSONResponse:
    """A database that is away is not a bug: say so, and let the caller come back."""
    assert isinstance(error, DBAPIError)
    log.error(
        "database.error", error=type(error.orig).__name__, invalidated=error.connection_invalidated
    )
    if error.connection_invalidated or type(error).__name__ == "OperationalError":
        return _later()
    return respond(
        500,
        "internal",
        ServiceError.title,
        "the administrator finds this correlation id in the log",
    )


def _no_connection(_request: Request, _error: Exception) -> JSONResponse:
    """All connections were in use for longer than anybody should wait."""
    log.error("database.busy")
    return _later()


def _later() -> JSONResponse:
    return respond(
        503,
        "database-unavailable",
        "The database does not answer",
        "try again in a moment",
        headers={"Retry-After": "5"},
    )


def _bug(_request: Request, error: Exception) -> JSONResponse:
    log.exception("request.bug", exc_info=error)
    return respond(
        500,
        "internal",
        ServiceError.title,
        "the administrator finds this correlation id in the log",
    )

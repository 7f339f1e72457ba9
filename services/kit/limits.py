"""Bodies that are too large are refused before they are read into memory."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.kit import problems
from services.kit.errors import TooLargeError
from services.settings import LimitSettings

# Bodies of these types are read as a stream by the routes that expect them.
STREAMED = frozenset({"application/zip", "application/octet-stream"})
IMAGES = frozenset({"image/png", "image/jpeg", "application/dicom"})
_ALLOWANCE = "ppdd.body"  # where a request keeps how much it may bring


@dataclass
class _Allowance:
    """How many bytes of a body are taken, and of what they are."""

    limit: int
    what: str

    def detail(self) -> str:
        return f"{self.what} may have {self.limit:,} bytes at most"


class BodyLimitMiddleware:
    """Count the bytes of a body; answer 413 past the limit, at once where the length was declared.

    What a media type allows holds for every route, whether it expects that type or not: an upload sent to a route that
    reads JSON must not fill the memory. A route that takes a stream allows its own request more with `expect_body`.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        media_type = _media_type(scope)
        allowance = (
            _Allowance(self.limits.image_bytes, "an image")
            if media_type in IMAGES
            else _Allowance(self.limits.body_bytes, "a JSON body")
        )
        declared = _declared(scope)
        if declared is None or (media_type not in STREAMED and declared > allowance.limit):
            refused = TooLargeError
            answer = problems.respond(
                refused.status, refused.slug, refused.title, allowance.detail()
            )
            await answer(scope, receive, send)
            return
        scope[_ALLOWANCE] = allowance
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > allowance.limit:
                # the one error that FastAPI lets through while it reads a body
                raise HTTPException(TooLargeError.status, allowance.detail())
            return message

        await self.app(scope, counted, send)


def expect_body(request: Request, limit: int, what: str) -> None:
    """Let this request bring up to `limit` bytes; TooLargeError where it declares more. `what` is for the message."""
    allowance = _Allowance(limit, what)
    if (_declared(request.scope) or 0) > limit:
        raise TooLargeError(allowance.detail())
    held: _Allowance | None = request.scope.get(_ALLOWANCE)
    if held is not None:
        held.limit, held.what = limit, what


def _declared(scope: Scope) -> int | None:
    """Return the declared length of the body, 0 where none is declared, None for what is no length."""
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(text) if text.isdigit() and len(text) < 20 else None


def _media_type(scope: Scope) -> str:
    header = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return str(header.partition(b";")[0].strip().lower().decode("latin-1"))

"""Bodies that are too large are refused before they are read into memory."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.kit import problems
from services.settings import LimitSettings

STREAMED = frozenset(
    {"application/zip", "application/octet-stream", "image/png", "image/jpeg", "application/dicom"}
)


class BodyLimitMiddleware:
    """Count the bytes of a body; answer 413 past the limit.

    Bodies that a route reads as a stream (uploads) are counted by the route, which knows their own limit.
    """

    def __init__(self, app: ASGIApp, limits: LimitSettings) -> None:
        self.app, self.limit = app, limits.body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or _media_type(scope) in STREAMED:
            await self.app(scope, receive, send)
            return
        declared = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b"0"
        )
        if not declared.isdigit() or int(declared) > self.limit:
            await self._refuse(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise problems.TooLargeError(self._detail())
            return message

        await self.app(scope, counted, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = problems.TooLargeError
        answer = problems.respond(refused.status, refused.slug, refused.title, self._detail())
        await answer(scope, receive, send)

    def _detail(self) -> str:
        return f"a JSON body may have {self.limit:,} bytes at most"


def _media_type(scope: Scope) -> str:
    header = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return str(header.partition(b";")[0].strip().lower().decode("latin-1"))

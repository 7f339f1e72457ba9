"""What every answer tells a browser: guess nothing, load nothing, keep nothing, stay on TLS."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
TLS_ONLY = "max-age=31536000"
# What is made anew for each caller is kept by nobody; what has an ETag may be kept, and is asked for before each use.
KEEP_NOTHING, ASK_FIRST = "no-store", "private, no-cache"


class HeadersMiddleware:
    """Add the headers that a route did not set itself."""

    def __init__(self, app: ASGIApp, tls: bool) -> None:
        self.app = app
        self.headers = {**ALWAYS, **({"Strict-Transport-Security": TLS_ONLY} if tls else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers.setdefault(name, value)
                headers.setdefault(
                    "Cache-Control", ASK_FIRST if "ETag" in headers else KEEP_NOTHING
                )
            await send(message)

        await self.app(scope, receive, answer)

"""Prometheus: requests by operation and status, how long they took. No ids and no names are labels."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.kit.http import operation_id

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "ppdd_requests", "Requests answered.", ["method", "operation", "status"], registry=REGISTRY
)
SECONDS = Histogram(
    "ppdd_request_seconds", "Seconds until an answer was complete.", ["method", "operation"], registry=REGISTRY,
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600),
)  # fmt: skip


class MetricsMiddleware:
    """Count every request under its operation's id; a path without a route counts as `none`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, answer)
        finally:
            operation = operation_id(scope["route"]) if "route" in scope else "none"
            method = (
                scope["method"]
                if scope["method"] in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
                else "other"
            )
            REQUESTS.labels(method, operation, status).inc()
            SECONDS.labels(method, operation).observe(time.perf_counter() - began)

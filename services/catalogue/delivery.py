"""Objects over HTTP (RFC 9110): a strong ETag, one byte range, conditions; and no end before the bytes were checked.

A request for several ranges is refused, so that nobody can make the node answer one small header with gigabytes.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import anyio
import structlog
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.kit.errors import ServiceError
from services.kit.storage import ObjectStore, StoreError

log = structlog.get_logger(__name__)
_ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)-([0-9]*)[ \t]*", re.IGNORECASE)
_LONGEST = 19  # digits of a position that means something


class RangeRefusedError(ServiceError):
    """The range lies beyond the file, or there are several of them."""

    status, slug, title = 416, "range-refused", "This range cannot be sent"


class ConditionFailedError(ServiceError):
    """The file is not the one that `If-Match` names."""

    status, slug, title = 412, "condition-failed", "The file is another one"


@dataclass(frozen=True, slots=True)
class Blob:
    """What is handed out: an object of the store, and what it is called."""

    sha256: str
    size: int
    media_type: str
    filename: str

    @property
    def etag(self) -> str:
        """The strong validator: the digest."""
        return f'"sha256:{self.sha256}"'


@dataclass(frozen=True, slots=True)
class Span:
    """The bytes that are asked for."""

    start: int
    length: int
    partial: bool


def is_known(request: Request, blob: Blob) -> bool:
    """Return whether `If-None-Match` says that the caller has these bytes.

    ConditionFailedError where `If-Match` names others.
    """
    wanted = request.headers.get("if-match")
    if wanted is not None and not _names(wanted, blob.etag, weak=False):
        raise ConditionFailedError(f"its ETag is {blob.etag}", headers={"ETag": blob.etag})
    known = request.headers.get("if-none-match")
    return known is not None and _names(known, blob.etag, weak=True)


def asked_span(request: Request, blob: Blob) -> Span:
    """Return which bytes are asked for: all where there is no `Range` that counts.

    A `Range` counts for GET, in bytes, well-formed, and where `If-Range`, if there is one, names this ETag.
    RangeRefusedError for several ranges, and for one that begins beyond the end.
    """
    whole = Span(0, blob.size, partial=False)
    text, condition = request.headers.get("range"), request.headers.get("if-range")
    if text is None or request.method != "GET":
        return whole
    if condition is not None and condition.strip() != blob.etag:
        return whole
    if not text.lower().startswith("bytes="):
        return whole
    headers = {"Content-Range": f"bytes */{blob.size}", "Accept-Ranges": "bytes"}
    if "," in text:
        raise RangeRefusedError("ask for one range at a time", headers=headers)
    found = _ONE_RANGE.fullmatch(text)
    if found is None or not any(found.groups()):
        return whole
    first, last = (_position(part) for part in found.groups())
    if first is None:
        assert last is not None
        first, last = max(0, blob.size - last), blob.size - 1
        if first > last:
            first = blob.size  # the last 0 bytes: nothing that could be sent
    elif last is not None and last < first:
        return whole
    if first >= blob.size:
        raise RangeRefusedError(f"the file has {blob.size} bytes", headers=headers)
    end = blob.size if last is None else min(last + 1, blob.size)
    return Span(first, end - first, partial=True)


def describe(blob: Blob, span: Span | None = None) -> dict[str, str]:
    """Return the headers of an answer about the blob; without a span, of one that has no body."""
    digest = f"sha-256=:{base64.b64encode(bytes.fromhex(blob.sha256)).decode()}:"
    headers = {
        "ETag": blob.etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": digest,
        "Content-Disposition": f'attachment; filename="{blob.filename}"',
    }
    if span is None:
        return headers
    headers["Content-Length"] = str(span.length)
    if span.partial:
        end = span.start + span.length - 1
        headers["Content-Range"] = f"bytes {span.start}-{end}/{blob.size}"
    else:
        headers["Content-Digest"] = digest
    return headers


def not_modified(blob: Blob) -> Response:
    """Return the answer to somebody who has these bytes already."""
    return Response(status_code=304, headers=describe(blob))


def head(blob: Blob) -> Response:
    """Return what a GET would answer, without the bytes."""
    whole = Span(0, blob.size, partial=False)
    return Response(headers=describe(blob, whole), media_type=blob.media_type)


def send(store: ObjectStore, blob: Blob, span: Span) -> StreamingResponse:
    """Return the answer that streams the bytes; StoreError at once where the object is not there.

    Where the bytes turn out to be damaged on the way, the connection is broken off: the length that was announced is
    never reached, so nobody takes what arrived for the file.
    """
    pieces = (
        store.read(blob.sha256, start=span.start, length=span.length)
        if span.partial
        else store.read(blob.sha256)
    )
    return _Delivery(
        _in_threads(pieces),
        status_code=206 if span.partial else 200,
        headers=describe(blob, span),
        media_type=blob.media_type,
    )


class _Delivery(StreamingResponse):
    """A stream that ends early where the store fails: the server then closes the connection."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        try:
            await super().__call__(scope, receive, send)
        except StoreError as error:  # the answer has begun, so nothing can be said any more
            log.error("download.broken", slug=error.slug, detail=error.detail)


async def _in_threads(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the pieces; while one is sent, a thread reads and checks the next.

    However it ends, the thread has ended too, and the file was given back.
    """

    def read() -> asyncio.Task[bytes | None]:
        return asyncio.ensure_future(run_in_threadpool(next, pieces, None))

    coming = read()
    try:
        while (piece := await coming) is not None:
            coming = read()
            yield piece
    finally:
        with anyio.CancelScope(shield=True):
            await asyncio.wait([coming])
        if not coming.cancelled():
            coming.exception()  # it was raised where it was waited for, or nobody waits any more
        close = getattr(pieces, "close", None)
        if close is not None:
            close()


def _position(text: str) -> int | None:
    if not text:
        return None
    return int(text) if len(text) <= _LONGEST else 10**_LONGEST


def _names(header: str, etag: str, *, weak: bool) -> bool:
    """Return whether a list of entity tags holds this one; `weak` lets W/ pass, as If-None-Match does."""
    for one in header.split(","):
        tag = one.strip()
        if tag == "*" or tag == etag or (weak and tag == f"W/{etag}"):
            return True
    return False

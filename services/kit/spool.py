"""Bodies too large for memory, on their way through the disk: counted, hashed, gone when the block ends.

A spool file is locked while its process lives, so that `clear_spool` can tell what a killed one left behind.
"""

from __future__ import annotations

import base64
import binascii
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Protocol

import anyio
import structlog
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from services.kit.errors import BadRequestError, ServiceError, TooLargeError, UnprocessableError
from services.kit.room import DiskFullError, Room
from services.kit.storage import CHUNK, Spooled
from services.settings import Settings

IDLE_SECONDS = 120.0  # without a byte
LOOK_EVERY = 16 * CHUNK  # bytes between two looks at the free space
OLD_SECONDS = 24 * 3600.0  # other things in the spool are left behind after so long

_PREFIX = "body-"
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SHA256 = re.compile(r"(?:^|,)\s*sha-256\s*=\s*:([A-Za-z0-9+/=]*):\s*(?=,|;|$)")

log = structlog.get_logger(__name__)


class BrokenOffError(BadRequestError):
    """The body ended before it was whole."""

    slug, title = "broken-off", "The upload broke off"


class OtherBytesError(UnprocessableError):
    """The bytes that arrived are not those of the Content-Digest."""

    slug, title = "other-bytes", "Other bytes arrived than were announced"


class _Body(Protocol):
    def stream(self) -> AsyncIterator[bytes]: ...


@asynccontextmanager
async def spooled(
    body: _Body, settings: Settings, *, limit: int, declared: int | None, sha256: str | None
) -> AsyncIterator[Spooled]:
    """Yield the body of a request as a file, removed when the block ends, however it ends.

    Memory stays flat and no thread waits for the client. TooLargeError past `limit` bytes; DiskFullError where less
    than the disk reserve would be left free; BrokenOffError for a body that ends early or pauses for IDLE_SECONDS;
    OtherBytesError where `sha256` is given and is not that of the bytes.
    """
    room = Room(settings.spool_dir, settings.limits.disk_reserve_bytes)
    path, file = await run_in_threadpool(_create, room, declared or 0)
    try:
        with file:
            digest, size = await _write(body, file, room, limit)
        if sha256 is not None and sha256 != digest:
            raise OtherBytesError(
                f"sha-256 of the {size:,} bytes received is {digest[:12]}…, announced was {sha256[:12]}…; try again"
            )
        yield Spooled(path, size, digest)
    finally:
        path.unlink(missing_ok=True)


def announced_sha256(values: list[str]) -> str | None:
    """Return the sha-256 of `Content-Digest` (RFC 9530) in hexadecimal, None where there is none."""
    text = ",".join(values)
    found = _SHA256.findall(text)
    if not found:
        if "sha-256" in text:
            raise BadRequestError("Content-Digest: write sha-256=:BASE64: (RFC 9530)")
        return None
    try:
        digest = base64.b64decode(found[-1], validate=True)
    except binascii.Error:
        digest = b""
    if len(digest) != 32:
        raise BadRequestError("Content-Digest: sha-256 is 32 bytes in base64 between colons")
    return digest.hex()


def clear_spool(settings: Settings) -> int:
    """Remove what processes that no longer live left in the spool; return how many things that were."""
    removed = 0
    with suppress(FileNotFoundError):
        for path in settings.spool_dir.iterdir():
            with suppress(OSError):
                removed += _remove_stale(path)
    if removed:
        log.info("spool.cleared", removed=removed)
    return removed


async def _write(body: _Body, file: FileIO, room: Room, limit: int) -> tuple[str, int]:
    digest, buffer, size, looked = hashlib.sha256(), bytearray(), 0, 0

    def flush() -> None:
        digest.update(buffer)
        written = 0
        while written < len(buffer):
            written += file.write(bytes(buffer[written:]) if written else buffer)

    stream = aiter(body.stream())
    try:
        while True:
            with anyio.fail_after(IDLE_SECONDS):
                chunk = await anext(stream, None)
            if chunk is None:
                break
            buffer += chunk
            size += len(chunk)
            if size > limit:
                raise TooLargeError(f"an upload may have {limit:,} bytes at most")
            if len(buffer) >= CHUNK:
                if size - looked >= LOOK_EVERY:
                    await run_in_threadpool(room.require, len(buffer))
                    looked = size
                await run_in_threadpool(flush)
                buffer.clear()
        await run_in_threadpool(flush)
    except ClientDisconnect:
        raise BrokenOffError(f"the connection ended after {size:,} bytes; send again") from None
    except TimeoutError:
        raise BrokenOffError(
            f"nothing arrived for {IDLE_SECONDS:.0f} s after {size:,} bytes; send again"
        ) from None
    except OSError as fault:
        raise _full(fault) from None
    return digest.hexdigest(), size


def _create(room: Room, declared: int) -> tuple[Path, FileIO]:
    try:
        room.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        room.require(declared)
        while True:
            path = room.folder / f"{_PREFIX}{secrets.token_hex(8)}"
            file = FileIO(os.open(path, _NEW, 0o600), "r+b")
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else it was cleared before it was locked
                return path, file
            file.close()
    except OSError as fault:
        raise _full(fault) from None


def _full(fault: OSError) -> ServiceError:
    if fault.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError("the disk that holds the node's data is full; make room there")
    log.error("spool.failed", error=fault.strerror)
    return DiskFullError(f"the node's spool folder cannot be written: {fault.strerror}")


def _remove_stale(path: Path) -> bool:
    if not path.name.startswith(_PREFIX):
        if time.time() - path.lstat().st_mtime < OLD_SECONDS:
            return False
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
        return True
    descriptor = os.open(path, _LOOK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its writer lives
        path.unlink()
    finally:
        os.close(descriptor)
    return True

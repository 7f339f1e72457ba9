"""Objects by content: a key is the sha256 of the bytes behind it, so nothing is overwritten and reading can be checked.

`ObjectStore` is the one seam to where bytes lie. What refers to an object is a matter of tables.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from services.kit.errors import ServiceError

DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK = 1 << 20  # bytes read at a time


class StoreError(ServiceError):
    """The object store cannot do what was asked: unreachable, refused, full, or an answer that makes no sense."""

    status, slug, title = 503, "store-unavailable", "The object store does not answer"


class StoreDeniedError(StoreError):
    """The store does not let this node in."""

    slug, title = "store-denied", "The object store refuses this node"


class ObjectMissingError(StoreError):
    """There is no object of this digest."""

    status, slug, title = 500, "object-missing", "An object is missing from the store"


class ObjectDamagedError(StoreError):
    """The bytes in the store are not those of their digest."""

    status, slug, title = 500, "object-damaged", "An object in the store was altered"


class StoreFullError(StoreError):
    """There is no room for the object."""

    status, slug, title = 507, "store-full", "The object store is full"


@dataclass(frozen=True, slots=True)
class Spooled:
    """A file on its way into the store, which arrived whole."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Stored:
    """One object: its digest and size in bytes, and when it was written."""

    sha256: str
    size: int
    written_at: datetime


class ObjectStore(Protocol):
    """Where bytes lie. Every failure is a StoreError; a digest that is none is a ValueError (a bug, not input)."""

    def put_file(self, path: Path, sha256: str) -> None:
        """Store the file's bytes, which must be those of `sha256` (else ObjectDamagedError, nothing is stored).

        An object that is there already is left as it is, and its time renewed.
        """

    def put(self, data: bytes) -> str:
        """Store small bytes and return their digest."""

    def size(self, sha256: str) -> int:
        """Return the size in bytes; ObjectMissingError if there is none."""

    def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start`, `length` of them or all that follow, in pieces of at most CHUNK.

        ObjectMissingError is raised at once, before the first piece. Read whole, the bytes are hashed on the way and
        ObjectDamagedError raised *instead of the last piece* where they are not those of the digest: a reader that
        reached the end has the right bytes.
        """

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to `path`, whole and verified or not at all."""

    def delete(self, sha256: str) -> None:
        """Remove the object; one that is not there is no error."""

    def list(self) -> Iterator[Stored]:
        """Yield every object, in no order."""

    def drop_unfinished(self, before: datetime) -> None:
        """Remove what writes that were broken off before that moment left behind; it never was an object."""

    def check(self) -> None:
        """Raise StoreError if the store cannot be written and read now."""

    def check_private(self) -> None:
        """Raise StoreError if objects can be had without going through the node."""


def require_digest(sha256: str) -> str:
    """Return `sha256`; ValueError if it is none, so that no text from outside can become a key."""
    if not DIGEST.fullmatch(sha256):
        raise ValueError(f"not a sha256: {sha256[:80]!r}")
    return sha256


def read_all(store: ObjectStore, sha256: str, *, limit: int) -> bytes:
    """Return a small object whole; StoreError where it is larger than `limit` bytes."""
    if store.size(sha256) > limit:
        raise StoreError(f"object {sha256[:12]}… is larger than {limit} bytes")
    return b"".join(store.read(sha256))


def pieces(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's bytes in pieces of CHUNK."""
    while piece := file.read(CHUNK):
        yield piece


def span(size: int, start: int, length: int | None) -> tuple[int, int]:
    """Return the first byte and the number of bytes that a read of an object of `size` bytes gives."""
    if start < 0 or (length is not None and length < 0):
        raise ValueError(f"no part of an object: start {start}, length {length}")
    rest = max(size - start, 0)
    return start, rest if length is None else min(length, rest)


def verified(data: Iterable[bytes], sha256: str) -> Iterator[bytes]:
    """Yield pieces as they come; ObjectDamagedError instead of the last one if they are not those of `sha256`."""
    digest, held = hashlib.sha256(), b""
    for piece in data:
        if held:
            yield held
        digest.update(piece)
        held = piece
    if digest.hexdigest() != sha256:
        raise ObjectDamagedError(
            f"the bytes given for object {sha256[:12]}… are not those of its digest"
        )
    if held:
        yield held


def write_whole(data: Iterable[bytes], path: Path) -> None:
    """Write pieces to `path` through a file beside it, so that it is there whole or not at all."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(aside, flags, 0o600), "wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as err:
        aside.unlink(missing_ok=True)
        raise disk_failure(err, "writing down an object") from err
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def disk_failure(error: OSError, doing: str) -> StoreError:
    """Return the StoreError that says what the operating system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"there is no room left for {doing}: free some space, then try again")
    return StoreError(f"{doing} failed: {error.strerror or type(error).__name__}")

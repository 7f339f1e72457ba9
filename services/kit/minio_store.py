"""Objects in a bucket of an S3 server, spoken to through the MinIO SDK: `sha256/ab/<sha256>`.

Nothing of the SDK comes out of here: what a server, a proxy before it or the network answers becomes a StoreError.
Some servers answer errors as `text/xml`, which the SDK takes for no answer at all; their codes are read here too.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from xml.etree.ElementTree import ParseError

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from ppdd_core.errors import BadConfigError
from services.kit.db import now
from services.kit.storage import (
    CHUNK,
    DIGEST,
    ObjectDamagedError,
    ObjectMissingError,
    Stored,
    StoreDeniedError,
    StoreError,
    StoreFullError,
    pieces,
    require_digest,
    span,
    verified,
    write_whole,
)
from services.settings import StoreSettings

PART = 16 << 20  # bytes held in memory by one upload; 10,000 of them are the largest object
FRESH = timedelta(
    hours=1
)  # an object younger than this need not be written again to renew its time
PREFIX = "sha256/"
PROBE, PROBE_BYTES = "probe", b"The node writes this to see whether the store works.\n"

_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "ResourceNotFound"})
_DENIED = frozenset(
    {
        "AccessDenied",
        "AccountProblem",
        "AuthorizationHeaderMalformed",
        "InvalidAccessKeyId",
        "InvalidSecurity",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)
_FULL = re.compile(r"StorageFull|QuotaExceeded|InsufficientStorage|no space left", re.IGNORECASE)
_OURS = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})
# Beside its own errors the SDK lets through those of its transport, and of parsing answers that make no sense.
_FAILURES = (
    MinioException, HTTPError, ParseError, OSError, ValueError, TypeError, AttributeError, LookupError
)  # fmt: skip


class MinioStore:
    """The ObjectStore of a node with an S3 server. The bucket is made by the first write."""

    def __init__(self, settings: StoreSettings) -> None:
        assert settings.access_key is not None
        assert settings.secret_key is not None
        self.settings, self.bucket = settings, settings.bucket
        pool = _connections()
        try:
            self._client = Minio(
                settings.endpoint,
                settings.access_key.get_secret_value(),
                settings.secret_key.get_secret_value(),
                secure=settings.secure,
                region=settings.region,
                http_client=pool,
            )
        except ValueError as err:
            raise BadConfigError(
                f"PPDD_STORE__ENDPOINT must be host:port, without scheme or path: {err}"
            ) from None
        self._prepared = False

    def put_file(self, path: Path, sha256: str) -> None:
        """Store the file's bytes; ObjectDamagedError, and nothing stored, if they are not those of `sha256`."""
        require_digest(sha256)
        with _answering(sha256), path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._prepare()
            if self._fresh(sha256, size):
                for _ in verified(pieces(file), sha256):
                    pass  # only to know that the caller's bytes are the right ones
            elif size <= PART:
                self._upload(sha256, b"".join(verified(pieces(file), sha256)))
            else:
                self._client.put_object(
                    self.bucket,
                    _name(sha256),
                    _VerifiedFile(file, size, sha256),  # type: ignore[arg-type]  # all the SDK does is read()
                    size,
                    part_size=PART,
                    num_parallel_uploads=1,  # its own threads would read the whole file ahead
                )

    def put(self, data: bytes) -> str:
        """Store small bytes and return their digest."""
        sha256 = hashlib.sha256(data).hexdigest()
        with _answering(sha256):
            self._prepare()
            if not self._fresh(sha256, len(data)):
                self._upload(sha256, data)
        return sha256

    def size(self, sha256: str) -> int:
        """Return the size in bytes; ObjectMissingError if there is none."""
        name = _name(sha256)
        with _answering(sha256):
            return int(self._client.stat_object(self.bucket, name).size or 0)

    def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start`; verified where they are read whole."""
        size = self.size(sha256)
        first, count = span(size, start, length)
        found = self._pieces(sha256, first, count, whole=count == size)
        return verified(found, sha256) if count == size else found

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to `path`, whole and verified or not at all."""
        write_whole(self.read(sha256), path)

    def delete(self, sha256: str) -> None:
        """Remove the object; one that is not there is no error."""
        name = _name(sha256)
        try:
            with _answering(sha256):
                self._client.remove_object(self.bucket, name)
        except ObjectMissingError:
            pass

    def list(self) -> Iterator[Stored]:
        """Yield every object; keys that are none are passed over."""
        with _answering():
            self._prepare()
            for item in self._client.list_objects(self.bucket, prefix=PREFIX, recursive=True):
                name = (item.object_name or "").rpartition("/")[2]
                if DIGEST.fullmatch(name) and item.object_name == _name(name):
                    written = item.last_modified or datetime.fromtimestamp(0, UTC)
                    yield Stored(name, int(item.size or 0), written)

    def drop_unfinished(self, before: datetime) -> None:
        """End uploads in parts that were broken off before that moment."""
        with _answering():
            self._prepare()
            # The SDK has these two calls, but gives them no public name.
            try:
                found = self._client._list_multipart_uploads(self.bucket, prefix=PREFIX)
            except MinioException as err:
                if _code(err)[0] == "NoSuchUpload":  # some servers say so where there is none
                    return
                raise
            for upload in found.uploads or []:
                if upload.initiated_time is not None and upload.initiated_time < before:
                    self._client._abort_multipart_upload(
                        self.bucket, upload.object_name, upload.upload_id or ""
                    )

    def check(self) -> None:
        """Raise StoreError if nothing can be written and read now."""
        with _answering():
            self._prepare()
            self._client.put_object(
                self.bucket, PROBE, io.BytesIO(PROBE_BYTES), len(PROBE_BYTES), "text/plain"
            )
            response = self._client.get_object(self.bucket, PROBE)
            try:
                read = response.read()
            finally:
                response.close()
                response.release_conn()
        if read != PROBE_BYTES:
            raise StoreError("the object store gives back other bytes than were written")

    def check_private(self) -> None:
        """Raise StoreError if the bucket can be read, listed or written without keys."""
        self.check()
        nobody = Minio(
            self.settings.endpoint,
            secure=self.settings.secure,
            region=self.settings.region,
            http_client=_connections(),
        )
        attempts: dict[str, Callable[[], object]] = {
            "read": lambda: nobody.stat_object(self.bucket, PROBE),
            "listed": lambda: next(iter(nobody.list_objects(self.bucket)), None),
            "written": lambda: nobody.put_object(
                self.bucket, PROBE, io.BytesIO(PROBE_BYTES), len(PROBE_BYTES), "text/plain"
            ),
        }
        for done, attempt in attempts.items():
            try:
                with _answering():
                    attempt()
            except StoreError:  # with keys it just worked: this is a refusal, however it is worded
                continue
            raise StoreError(
                f"the bucket {self.bucket} can be {done} by anybody, without keys: remove its policy"
            )

    def _prepare(self) -> None:
        if self._prepared:
            return
        if not self._client.bucket_exists(self.bucket):
            try:
                self._client.make_bucket(self.bucket)
            except MinioException as err:
                if _code(err)[0] not in _OURS:  # somebody else was quicker
                    raise
        self._prepared = True

    def _fresh(self, sha256: str, size: int) -> bool:
        try:
            with _answering(sha256):
                found = self._client.stat_object(self.bucket, _name(sha256))
        except ObjectMissingError:
            return False
        return (
            found.size == size
            and found.last_modified is not None
            and now() - found.last_modified < FRESH
        )

    def _upload(self, sha256: str, data: bytes) -> None:
        self._client.put_object(self.bucket, _name(sha256), io.BytesIO(data), len(data))

    def _pieces(self, sha256: str, start: int, count: int, *, whole: bool) -> Iterator[bytes]:
        if count == 0:
            return
        with _answering(sha256):
            response = self._client.get_object(
                self.bucket,
                _name(sha256),
                offset=0 if whole else start,
                length=0 if whole else count,
            )
            try:
                for piece in response.stream(CHUNK):
                    count -= len(piece)
                    if count < 0:
                        raise StoreError(
                            f"the store gives more of object {sha256[:12]}… than was asked for"
                        )
                    yield piece
            finally:
                response.close()
                response.release_conn()
            if count:
                raise StoreError(f"object {sha256[:12]}… ends too early")


class _VerifiedFile:
    """A file of which the last bytes are given only if all of them are the right ones: else the upload is given up."""

    def __init__(self, file: BinaryIO, size: int, sha256: str) -> None:
        self.file, self.left, self.sha256 = file, size, sha256
        self.digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        piece = self.file.read(min(count, self.left))
        self.digest.update(piece)
        self.left -= len(piece)
        ended = self.left == 0 or not piece
        if ended and (self.left or self.file.read(1) or self.digest.hexdigest() != self.sha256):
            raise ObjectDamagedError(
                f"the bytes given for object {self.sha256[:12]}… are not those of its digest"
            )
        return piece


def _name(sha256: str) -> str:
    require_digest(sha256)
    return f"{PREFIX}{sha256[:2]}/{sha256}"


def _connections() -> urllib3.PoolManager:
    """Return connections that give up on a dead server within seconds, and on a frozen one within half a minute."""
    return urllib3.PoolManager(
        maxsize=32,
        timeout=urllib3.Timeout(connect=3, read=15),
        retries=urllib3.Retry(
            total=2,
            connect=1,
            read=1,
            backoff_factor=0.2,
            status_forcelist=(500, 502, 503, 504),
            raise_on_status=False,  # the last answer says more than that there were many
            respect_retry_after_header=False,  # it may say hours
        ),
        cert_reqs="CERT_REQUIRED",
        ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
    )


@contextmanager
def _answering(sha256: str = "") -> Iterator[None]:
    try:
        yield
    except _FAILURES as err:
        raise _store_error(err, sha256) from err


def _store_error(error: Exception, sha256: str) -> StoreError:
    code, status, text = _code(error)
    if code in _MISSING and sha256:
        return ObjectMissingError(f"there is no object {sha256[:12]}… in the store")
    if code in _DENIED or status in (401, 403):
        return StoreDeniedError(
            f"the object store refuses the node ({code or status}): see PPDD_STORE__ACCESS_KEY, "
            "PPDD_STORE__SECRET_KEY and the clock"
        )
    if status == 507 or _FULL.search(f"{code} {text}"):
        return StoreFullError("the object store has no room left: free some space, then try again")
    if code or status:
        return StoreError(f"the object store answers {code or f'with HTTP status {status}'}")
    return StoreError(f"the object store does not answer ({type(error).__name__})")


def _code(error: Exception) -> tuple[str, int, str]:
    """Return an answer's S3 code, HTTP status and text, as far as there are any."""
    if isinstance(error, S3Error):
        status = getattr(error.response, "status", 0)
        return error.code or "", int(status or 0), error.message or ""
    if isinstance(error, InvalidResponseError):
        body = error._body or ""  # kept nowhere else
        found = re.search(r"<Code>\s*([A-Za-z0-9.]+)\s*</Code>", body)
        return found[1] if found else "", int(error._code), body
    if isinstance(error, ServerError):
        return "", error.status_code, ""
    return "", 0, ""

"""Speaking to another hospital's node: plain HTTP with Range and ETag, and no trust in what it answers.

The address is checked and pinned (`address`), redirects and compression are refused, every answer has a bound in bytes
and in time, and nothing that was answered ends in a message, because a message may reach somebody who must not read
this network's inside.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import httpx2
from pydantic import BaseModel, Field, ValidationError

from ppdd_core import __version__
from ppdd_core.errors import BadConfigError
from ppdd_core.package.signature import printable
from services.kit.errors import TooLargeError
from services.peers.address import NodeUrl, resolve
from services.peers.errors import (
    PeerAnswerError,
    PeerDeniedError,
    PeerKeyError,
    PeerUnreachableError,
    PeerYankedError,
)
from services.settings import PullSettings

API = "/api/v1"  # where ours is, and the only one we speak
SMALL, LARGE = 2**16, 16 * 2**20  # bytes of JSON: who a node is; one version with its manifest
SLOWEST = 1024  # bytes a second, below which a transfer counts as broken off
ENOUGH = 2**16  # bytes that a connection must bring, else it counts as none
TRIES = 4  # of those in a row
PAUSE = 0.1  # seconds, doubled with each of them
CONNECT_SECONDS = 10.0
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")

Told = TypeVar("Told", bound=BaseModel)
Report = Callable[[int, int], None]  # bytes that are here, bytes in all


class WellKnown(BaseModel):
    """Who a node says it is."""

    site_id: str = Field(max_length=64)
    key: str = Field(pattern="^[0-9a-f]{64}$")
    api: list[str] = Field(max_length=100)


class Offer(BaseModel):
    """What a node says of one version."""

    site: str
    name: str
    version: str
    state: str
    archive_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    archive_size: int = Field(ge=1, le=2**40)

    @property
    def etag(self) -> str:
        """The only ETag that its archive can have."""
        return f'"sha256:{self.archive_sha256}"'


@dataclass(frozen=True, slots=True)
class Peer:
    """A node that was reached: connections go to `addresses` and nowhere else."""

    url: NodeUrl
    addresses: tuple[str, ...]  # empty where a proxy looks names up
    settings: PullSettings
    http: httpx2.Client

    def who(self) -> WellKnown:
        """Return who the node says it is."""
        return self._read("/.well-known/ppdd.json", WellKnown, SMALL)

    def offer(self, site: str, name: str, version: str, token: str) -> Offer:
        """Return what the node says of one version; PeerDeniedError or PeerYankedError where it does not give it."""
        path = f"{API}/packages/{site}/{name}/versions/{version}"
        found = self._read(path, Offer, LARGE, token)
        if (found.site, found.name, found.version) != (site, name, version):
            raise PeerAnswerError(
                f"{self.url} described another package than {site}/{name}@{version}"
            )
        if found.state == "yanked":
            raise PeerYankedError(f"{site}/{name}@{version} was taken back by its hospital")
        return found

    def fetch_archive(self, offer: Offer, token: str, part: Path, report: Report) -> None:
        """Write the archive of an offer to `part`, going on after the bytes that are there; returns when it is whole.

        PeerUnreachableError keeps what arrived, for the next try. PeerAnswerError where the node sends something else
        than it offered; what cannot be gone on from is removed.
        """
        try:
            self._take(offer, token, part, report)
        except PeerAnswerError:
            part.unlink(missing_ok=True)
            raise

    def _take(self, offer: Offer, token: str, part: Path, report: Report) -> None:
        kept = _size(part)
        self._fill(offer, token, part, report)
        if kept and _digest(part) != offer.archive_sha256:
            part.unlink()  # what an earlier try left may be what is wrong
            self._fill(offer, token, part, report)
        if _digest(part) != offer.archive_sha256:
            raise PeerAnswerError(
                f"{self.url} sent other bytes than it announced; nothing was taken"
            )

    def _fill(self, offer: Offer, token: str, part: Path, report: Report) -> None:
        idle, have = 0, _size(part)
        if have > offer.archive_size:
            part.unlink()
            have = 0
        report(have, offer.archive_size)
        while have < offer.archive_size:
            try:
                self._continue(offer, token, part, have, report)
                gone: PeerUnreachableError | None = None
            except PeerUnreachableError as error:
                gone = error
            now_there = _size(part)
            idle = 0 if now_there >= have + ENOUGH else idle + 1
            have = now_there
            if idle >= TRIES and have < offer.archive_size:
                raise gone or PeerUnreachableError(f"{self.url} sends nothing any more")
            if idle:
                time.sleep(min(PAUSE * 2**idle, self.settings.timeout_seconds))

    def _continue(self, offer: Offer, token: str, part: Path, have: int, report: Report) -> None:
        """Ask for what is missing, once, and append what arrives."""
        path = f"{API}/packages/{offer.site}/{offer.name}/versions/{offer.version}/archive"
        asked = {"Range": f"bytes={have}-", "If-Range": offer.etag} if have else {}
        with self._get(path, token, asked) as answer:
            if answer.status_code == 416 and have:
                part.unlink()
                return
            start = self._start_of(answer, offer, have)
            with part.open("r+b" if part.exists() else "xb") as file:
                file.truncate(start)  # to nothing where the node sends everything anew
                file.seek(start)
                try:
                    self._append(answer, file, offer, start, report)
                finally:
                    file.flush()
                    os.fsync(file.fileno())

    def _start_of(self, answer: httpx2.Response, offer: Offer, have: int) -> int:
        """Return at which byte the answer begins: 0 for the whole file; PeerAnswerError for any other than asked."""
        self._require_good(answer)
        if answer.headers.get("etag") != offer.etag:
            raise PeerAnswerError(f"the file at {self.url} is not the one that was offered")
        if answer.status_code == 200:
            start, end = 0, offer.archive_size
        else:
            found = _RANGE.fullmatch(answer.headers.get("content-range", ""))
            if answer.status_code != 206 or found is None:
                raise PeerAnswerError(f"{self.url} answered a range with something else")
            start, end = int(found[1]), int(found[2]) + 1
            if start != have or not start < end <= offer.archive_size == int(found[3]):
                raise PeerAnswerError(f"{self.url} sent another range than was asked for")
        length = answer.headers.get("content-length")
        if length is not None and length != str(end - start):
            raise PeerAnswerError(f"{self.url} announced another length than it offered")
        return start

    def _append(
        self, answer: httpx2.Response, file: BinaryIO, offer: Offer, start: int, report: Report
    ) -> None:
        have, pace = start, _Pace(self.settings.timeout_seconds)
        for piece in self._pieces(answer):
            have += len(piece)
            if have > offer.archive_size:
                raise PeerAnswerError(f"{self.url} sends more bytes than it offered")
            file.write(piece)
            report(have, offer.archive_size)
            if not pace.holds(len(piece)):
                raise PeerUnreachableError(f"{self.url} sends less than {SLOWEST} bytes a second")

    def _read(self, path: str, shape: type[Told], limit: int, token: str | None = None) -> Told:
        """Return a small JSON answer of that shape."""
        data, pace = bytearray(), _Pace(self.settings.timeout_seconds)
        with self._get(path, token, {}) as answer:
            self._require_good(answer)
            for piece in self._pieces(answer):
                data += piece
                if len(data) > limit:
                    raise PeerAnswerError(f"{self.url} answers {path} with too many bytes")
                if not pace.holds(len(piece)):
                    raise PeerUnreachableError(f"{self.url} is too slow")
        try:
            return shape.model_validate(json.loads(data))
        except (ValueError, RecursionError, ValidationError):
            raise PeerAnswerError(
                f"{self.url} is no PPDD node with {API}: its answer to {path} has another shape"
            ) from None

    def _pieces(self, answer: httpx2.Response) -> Iterator[bytes]:
        with _speaking(self.url):
            yield from answer.iter_raw()  # as they arrive: a size would wait for slow ones

    @contextmanager
    def _get(
        self, path: str, token: str | None, headers: dict[str, str]
    ) -> Iterator[httpx2.Response]:
        """Yield the answer of one of the node's addresses, without its body."""
        if token is not None:
            headers = {**headers, "Authorization": f"Bearer {token}"}
        last = len(self.addresses) - 1
        for number, address in enumerate(self.addresses or (self.url.host,)):
            request = self.http.build_request(
                "GET",
                f"{self.url.scheme}://{self.url.at(address)}{path}",
                headers={**headers, "Host": self.url.authority},
                extensions={"sni_hostname": self.url.host},
            )
            try:
                with _speaking(self.url):
                    answer = self.http.send(request, stream=True)
            except _NoConnectionError:
                if number >= last:
                    raise
                continue
            try:
                yield answer
            finally:
                answer.close()
            return

    def _require_good(self, answer: httpx2.Response) -> None:
        status = answer.status_code
        if status in (401, 403, 404):
            raise PeerDeniedError(
                f"{self.url} does not give it (HTTP {status}): the token may be wrong, expired or narrower, or the "
                "version may not be released; ask that hospital"
            )
        if status == 410:
            raise PeerYankedError(f"{self.url} says that the version was taken back")
        if status == 429 or status >= 500:
            raise PeerUnreachableError(f"{self.url} cannot answer now (HTTP {status})")
        if 300 <= status < 400:
            raise PeerAnswerError(
                f"{self.url} redirects, which is not followed: give the address itself"
            )
        if status not in (200, 206):
            raise PeerAnswerError(f"{self.url} answered with HTTP {status}")
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            raise PeerAnswerError(f"{self.url} compresses what must arrive as it is")


@contextmanager
def reach(url: NodeUrl, settings: PullSettings) -> Iterator[Peer]:
    """Yield the node behind `url`; its name is looked up here, once. Nothing of the environment is used.

    Through a configured proxy the proxy looks the name up, and what may be reached is the proxy's to say.
    """
    addresses = () if settings.proxy else tuple(resolve(url, settings))
    context = httpx2.create_ssl_context(trust_env=False)
    if settings.ca_file is not None:
        _trust(context, settings.ca_file)
    timeout = httpx2.Timeout(
        settings.timeout_seconds, connect=min(CONNECT_SECONDS, settings.timeout_seconds)
    )
    with httpx2.Client(
        trust_env=False,
        follow_redirects=False,
        verify=context,
        timeout=timeout,
        proxy=settings.proxy or None,
        headers={"User-Agent": f"ppdd/{__version__}", "Accept-Encoding": "identity"},
    ) as http:
        yield Peer(url, addresses, settings, http)


def require_key(peer: Peer, site: str, key: str) -> None:
    """Raise unless the node is that of `site`, has the pinned key, and speaks our API."""
    told = peer.who()
    if told.key != key:
        raise PeerKeyError(
            f"{peer.url} has the key {printable(told.key)}, pinned was {printable(key)}; compare them with that "
            "hospital, over another channel"
        )
    if told.site_id != site:
        raise PeerAnswerError(
            f"{peer.url} is not the node of {site}; pull a package from its own hospital"
        )
    if API not in told.api:
        raise PeerAnswerError(f"{peer.url} has no {API}, the API that this node speaks")


def require_size(offer: Offer, limit: int) -> None:
    """Raise TooLargeError for an archive beyond the limit, before a byte of it is asked for."""
    if offer.archive_size > limit:
        raise TooLargeError(
            f"the archive has {offer.archive_size:,} bytes; PPDD_LIMITS__PACKAGE_BYTES allows {limit:,}"
        )


class _NoConnectionError(PeerUnreachableError):
    """No connection came about, so another address may be tried."""


@contextmanager
def _speaking(url: NodeUrl) -> Iterator[None]:
    """Let errors of the HTTP library become ours; the connection's details stay out of the message."""
    try:
        yield
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        raise _NoConnectionError(f"no connection to {url}: {_why(error)}") from None
    except httpx2.TimeoutException:
        raise PeerUnreachableError(f"{url} fell silent") from None
    except (httpx2.TransportError, httpx2.InvalidURL):
        raise PeerUnreachableError(f"the connection to {url} broke off") from None


def _why(error: httpx2.TransportError) -> str:
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted here (PPDD_PULL__CA_FILE adds an authority)"
    return "it refused, or does not answer"


def _trust(context: ssl.SSLContext, file: Path) -> None:
    try:
        context.load_verify_locations(cafile=file)
    except OSError:  # ssl.SSLError is one
        raise BadConfigError(f"PPDD_PULL__CA_FILE: {file} holds no certificates") from None


class _Pace:
    """Whether bytes come fast enough, looked at once per `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.began, self.seen = seconds, time.monotonic(), 0

    def holds(self, more: int) -> bool:
        """Count bytes; return False where the last stretch brought too few."""
        self.seen += more
        passed = time.monotonic() - self.began
        if passed < self.seconds:
            return True
        enough = self.seen >= SLOWEST * passed
        self.began, self.seen = time.monotonic(), 0
        return enough


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

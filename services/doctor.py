"""Is this node well, and can it reach another? Every part is looked at; each finding says what to do.

Findings are for the administrator at the machine: unlike the readiness that the API tells, they name places.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import sqlalchemy as sa
from cryptography import x509
from sqlalchemy.exc import SQLAlchemyError

from ppdd_core import __version__
from ppdd_core.errors import BadConfigError, PpddError
from ppdd_core.package.signature import fingerprint, load_or_create_key, printable
from services.kit.db import READONLY, connect
from services.kit.migrate import require_head
from services.kit.resources import Resources
from services.kit.secrets import load_vault
from services.kit.storage import StoreError
from services.settings import Settings
from services.system import service

Result = Literal["PASS", "WARN", "FAIL"]
SKEW_WARN, SKEW_FAIL = 2.0, 30.0  # seconds that two clocks may differ
CERTIFICATE_DAYS = 30
TORCH_SECONDS = 180
MAX_ANSWER = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Finding:
    """How one part is: what was seen, and where it is not well, what to do."""

    part: str
    result: Result
    seen: str
    fix: str = ""


def good(part: str, seen: str) -> Finding:
    """Return that a part is well."""
    return Finding(part, "PASS", seen)


# ---------------------------------------------------------------------------------------- this node


def examine(resources: Resources) -> Iterator[Finding]:
    """Yield how each part of this node is, one after the other."""
    yield from examine_service(resources)
    yield gpu()
    yield torch(resources.settings)


def examine_service(resources: Resources) -> Iterator[Finding]:
    """Yield the same without what only a worker's machine needs: GPU and torch."""
    settings = resources.settings
    yield good("versions", f"ppdd {__version__}, Python {platform.python_version()}")
    yield data_dir(settings)
    yield signing_key(settings)
    yield secret_key(settings)
    database_finding = database(settings)
    yield database_finding
    if database_finding.result != "FAIL":
        yield database_clock(resources)
    yield store(resources)
    yield _from_fault("broker", service.broker_fault(resources), _BROKER_FIX)
    yield _from_fault("worker", service.worker_fault(resources), _WORKER_FIX, bad="WARN")
    yield disk(settings)
    yield data_roots(settings)
    yield certificate(settings)


_BROKER_FIX = "start Redis, and check PPDD_BROKER__URL and its password; jobs wait meanwhile"
_WORKER_FIX = "start one: `ppdd node up` brings its own, docker compose has the services worker-cpu and worker-gpu"


def data_dir(settings: Settings) -> Finding:
    """Tell whether the data folder is there, writable and private."""
    folder = settings.data_dir
    try:
        mode = folder.stat().st_mode
    except OSError as err:
        return Finding(
            "data folder", "FAIL", f"{folder}: {err.strerror}", "give the right one with --data-dir"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            "data folder",
            "FAIL",
            f"{folder} cannot be written",
            f"chown it: {folder} belongs to another user",
        )
    if mode & 0o077:
        said = f"{folder} is open to others (mode {stat.S_IMODE(mode):04o})"
        return Finding("data folder", "FAIL", said, f"chmod 700 {folder}")
    return good("data folder", f"{folder}, for its owner only")


def signing_key(settings: Settings) -> Finding:
    """Tell whether the signing key is there, private and usable, and which it is."""
    if not settings.signing_key.exists():
        return Finding(
            "signing key",
            "WARN",
            f"there is none at {settings.signing_key}",
            "it is made when the node first starts",
        )
    try:
        return good("signing key", printable(fingerprint(load_or_create_key(settings.signing_key))))
    except PpddError as err:
        return Finding("signing key", "FAIL", str(err), "restore it from the backup")


def secret_key(settings: Settings) -> Finding:
    """Tell whether the key that protects stored credentials is there, private and strong."""
    path = settings.data_dir / "keys" / "secret-key"
    if settings.secret_key is None:
        if not path.exists():
            return Finding(
                "secret key",
                "WARN",
                f"there is none at {path}",
                "it is made when the node first starts",
            )
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            return Finding(
                "secret key",
                "FAIL",
                f"{path} can be read by others ({mode:04o})",
                f"chmod 600 {path}",
            )
    try:
        load_vault(settings)
    except BadConfigError as err:
        return Finding("secret key", "FAIL", str(err), "restore it from the backup")
    return good("secret key", "PPDD_SECRET_KEY" if settings.secret_key else str(path))


def database(settings: Settings) -> Finding:
    """Tell whether the database answers and has the shape that this program needs."""
    url = settings.database_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return Finding(
            "database", "FAIL", f"there is none at {url}", "start the node: `ppdd node up`"
        )
    engine = connect(settings)
    try:
        require_head(engine)
        version = engine.dialect.name
        with engine.connect().execution_options(**{READONLY: True}) as connection:
            found = connection.dialect.server_version_info or ()
        return good("database", f"{version} {'.'.join(map(str, found))}, tables as they should be")
    except BadConfigError as err:
        return Finding("database", "FAIL", str(err), "`ppdd node migrate`, after a backup")
    except SQLAlchemyError as err:
        reason = str(getattr(err, "orig", err)).strip().splitlines()[0]
        return Finding(
            "database",
            "FAIL",
            f"it does not answer: {reason}",
            "start it, and check PPDD_DATABASE__URL and its password",
        )
    finally:
        engine.dispose()


def database_clock(resources: Resources) -> Finding:
    """Tell whether this machine and the database agree what time it is."""
    if resources.engine.dialect.name != "postgresql":
        return good("clock", "the database has this machine's clock")
    with resources.engine.connect() as connection:
        began = time.time()
        theirs = connection.execute(
            sa.text("SELECT extract(epoch FROM clock_timestamp())")
        ).scalar_one()
        return _skew("clock", float(theirs) - (began + time.time()) / 2, "the database")


def store(resources: Resources) -> Finding:
    """Tell whether the object store can be written and read, and is private."""
    try:
        resources.store.check()
        private = getattr(resources.store, "check_private", None)
        if private is not None:
            private()
    except StoreError as err:
        return Finding(
            "object store",
            "FAIL",
            err.detail,
            "start it, and check PPDD_STORE__… and who may enter it",
        )
    return good("object store", f"{resources.settings.store.kind}: written, read back, private")


def disk(settings: Settings) -> Finding:
    """Tell whether there is room for work."""
    folder = next(
        one for one in (settings.data_dir, *settings.data_dir.absolute().parents) if one.exists()
    )
    free, reserve = shutil.disk_usage(folder).free, settings.limits.disk_reserve_bytes
    seen = f"{free / 2**30:,.1f} GiB free"
    fix = "make room, or `ppdd node collect` removes what nothing refers to"
    if free <= reserve:
        return Finding(
            "disk", "FAIL", f"{seen}, {reserve / 2**30:,.1f} GiB are kept in reserve", fix
        )
    if free <= 5 * reserve:
        return Finding("disk", "WARN", seen, fix)
    return good("disk", seen)


def data_roots(settings: Settings) -> Finding:
    """Tell whether the folders of source datasets can be read."""
    if not settings.data_roots:
        return Finding(
            "data roots", "WARN", "there are none: datasets can only be uploaded",
            "set PPDD_DATA_ROOTS, or --data-root, to where the images lie",
        )  # fmt: skip
    bad = [
        str(one)
        for one in settings.data_roots
        if not one.is_dir() or not os.access(one, os.R_OK | os.X_OK)
    ]
    if bad:
        return Finding(
            "data roots",
            "FAIL",
            f"cannot be read: {', '.join(bad)}",
            "mount them, and let this user read them",
        )
    return good("data roots", ", ".join(str(one) for one in settings.data_roots))


def gpu() -> Finding:
    """Tell which GPU the driver sees."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding(
            "GPU",
            "WARN",
            "no NVIDIA driver here",
            "without one, jobs compute on the CPU, and take longer",
        )
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        asked = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Finding(
            "GPU", "FAIL", "nvidia-smi does not answer", "look at the driver; restart the machine"
        )
    if asked.returncode:
        return Finding(
            "GPU",
            "FAIL",
            f"nvidia-smi fails: {asked.stdout.strip()[:200]}",
            "install the driver anew",
        )
    return good("GPU", "; ".join(asked.stdout.strip().splitlines()))


def torch(settings: Settings) -> Finding:
    """Tell whether torch can be used here, in a process of its own."""
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    try:
        asked = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "torch", "FAIL", "importing it takes minutes", "install the worker's packages anew"
        )
    if asked.returncode:
        return Finding(
            "torch", "WARN", "it is not installed here: this machine serves, and cannot compute",
            "where a worker runs: pip install 'ppdd[worker]'",
        )  # fmt: skip
    version, cuda = asked.stdout.split()
    if settings.worker.device == "cuda" and cuda != "True":
        return Finding(
            "torch",
            "FAIL",
            f"{version} sees no CUDA device",
            "check the driver, or set PPDD_WORKER__DEVICE=cpu",
        )
    return good("torch", f"{version}, {'with' if cuda == 'True' else 'without'} CUDA")


def certificate(settings: Settings) -> Finding:
    """Tell how long the certificate lasts that people see at the public address."""
    address = urlsplit(settings.public_url)
    if address.scheme != "https":
        return good("certificate", f"none needed: {settings.public_url} is this machine only")
    try:
        with _connected(address.hostname or "", address.port or 443, _trusting_all()) as (_, der):
            return _expiry("certificate", der)
    except OSError as err:
        return Finding(
            "certificate", "WARN", f"{settings.public_url} cannot be reached from here: {_reason(err)}",
            "look from another machine: `ppdd doctor --peer` there",
        )  # fmt: skip


# ------------------------------------------------------------------------------------ another node


def examine_peer(settings: Settings, url: str) -> Iterator[Finding]:
    """Yield how far one gets on the way to another node: name, connection, TLS, who it says it is, its clock."""
    address = urlsplit(url)
    tls = address.scheme == "https"
    host, port = address.hostname, address.port or (443 if tls else 80)
    if address.scheme not in ("http", "https") or not host:
        raise BadConfigError("--peer must be an address such as https://node.hospital.example")
    try:
        found = sorted(
            {str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        )
    except OSError as err:
        yield Finding(
            "peer: name",
            "FAIL",
            f"{host}: {_reason(err)}",
            "check the spelling, and this machine's DNS",
        )
        return
    yield good("peer: name", f"{host} is {', '.join(found)}")
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as err:
        yield Finding(
            "peer: connection", "FAIL", f"port {port}: {_reason(err)}",
            "is the node running? Ask both firewalls to let this machine out to it",
        )  # fmt: skip
        return
    yield good("peer: connection", f"port {port} is open")
    context = ssl.create_default_context(cafile=settings.pull.ca_file) if tls else None
    try:
        with _connected(host, port, context) as (connection, der):
            if der:
                yield _expiry("peer: TLS", der)
            else:
                yield Finding(
                    "peer: TLS", "WARN", "none: anybody between can read along", "use https://"
                )
            yield from _told(connection, host, address.path.rstrip("/"))
    except ssl.SSLError as err:
        reason = getattr(err, "verify_message", "") or err.reason or str(err)
        yield Finding(
            "peer: TLS", "FAIL", f"the certificate is not trusted: {reason}",
            "ask the hospital for its authority's certificate: PPDD_PULL__CA_FILE",
        )  # fmt: skip
    except (OSError, http.client.HTTPException) as err:
        yield Finding(
            "peer: answer",
            "FAIL",
            _reason(err),
            "what answers there is no node, or it is overloaded",
        )


def _told(connection: socket.socket, host: str, path: str) -> Iterator[Finding]:
    asked = (
        f"GET {path}/.well-known/ppdd.json HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    connection.sendall(asked.encode("ascii"))
    sent = time.time()
    answer = http.client.HTTPResponse(connection, method="GET")
    answer.begin()
    body = answer.read(MAX_ANSWER)
    try:
        told: dict[str, Any] = json.loads(body)
        who = f"{told['site_name']} ({told['site_id']}), {told['software']}"
        key = printable(str(told["key"]))
    except (ValueError, KeyError, TypeError):
        yield Finding(
            "peer: answer",
            "FAIL",
            f"it answers {answer.status}, but is no node",
            "check the address and its path",
        )
        return
    yield good("peer: answer", who[:300])
    yield Finding(
        "peer: key", "PASS", key, "compare it with the hospital, by telephone or on paper"
    )
    date = answer.headers.get("Date")
    if date:
        yield _skew(
            "peer: clock", parsedate_to_datetime(date).timestamp() + 0.5 - sent, "the other node"
        )


@contextmanager
def _connected(
    host: str, port: int, context: ssl.SSLContext | None
) -> Iterator[tuple[socket.socket, bytes | None]]:
    """Yield a connection, and the certificate at its other end where it speaks TLS."""
    with socket.create_connection((host, port), timeout=10) as plain:
        if context is None:
            yield plain, None
            return
        with context.wrap_socket(plain, server_hostname=host) as secure:
            yield secure, secure.getpeercert(binary_form=True)


def _trusting_all() -> ssl.SSLContext:
    """Return a context that only wants to see the certificate: nothing is sent over it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _expiry(part: str, der: bytes | None) -> Finding:
    assert der is not None
    until = x509.load_der_x509_certificate(der).not_valid_after_utc
    days = (until - datetime.now(UTC)).days
    seen = f"valid until {until:%Y-%m-%d} ({days} days)"
    fix = "renew it, put it into secrets/tls_certificate, and restart the proxy"
    if days < 0:
        return Finding(part, "FAIL", f"expired on {until:%Y-%m-%d}", fix)
    return good(part, seen) if days >= CERTIFICATE_DAYS else Finding(part, "WARN", seen, fix)


def _skew(part: str, seconds: float, whose: str) -> Finding:
    seen = f"{whose} is {abs(seconds):.1f} s {'ahead' if seconds > 0 else 'behind'}"
    fix = "let both machines keep time by NTP: logins between hospitals last minutes"
    if abs(seconds) > SKEW_FAIL:
        return Finding(part, "FAIL", seen, fix)
    return Finding(part, "WARN", seen, fix) if abs(seconds) > SKEW_WARN else good(part, seen)


def _from_fault(part: str, fault: str | None, fix: str, *, bad: Result = "FAIL") -> Finding:
    return good(part, "it answers") if fault is None else Finding(part, bad, fault, fix)


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)

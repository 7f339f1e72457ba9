from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from ppdd_core.cli.main import app
from ppdd_core.errors import BadConfigError, PpddError
from services.cli.crew import Crew
from services.cli.node import environment
from services.cli.running import alone_in, listen
from services.cli.secret_files import Deployment, self_signed, write_deployment
from services.settings import load_settings, secret_fault

WAIT = 180.0  # seconds; a busy machine imports slowly


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PPDD_")}


class Running:
    """A `ppdd node` process and what it has said so far."""

    def __init__(self, *words: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ppdd_core.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean_environment(),
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def wait_for(self, pattern: str) -> re.Match[str]:
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            assert self.process.poll() is None, self.lines
            time.sleep(0.05)
        raise AssertionError((pattern, self.lines))


@contextmanager
def running(*words: str) -> Iterator[Running]:
    node = Running(*words)
    try:
        yield node
    finally:
        node.process.kill()
        node.process.wait()
        node.reader.join()
        assert node.process.stdout
        node.process.stdout.close()


def get(url: str, path: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def descendants(parent: int) -> set[int]:
    """Return the processes below one, as the kernel has them now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: set[int] = set()
    waiting = [parent]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.e2e
def test_a_node_comes_up_serves_is_alone_and_stops_cleanly(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    with running("node", "up", "--data-dir", str(folder), "--port", "0", "--site", "a") as node:
        url = node.wait_for(r"at (http://127\.0\.0\.1:\d+)$")[1]
        link = node.wait_for(r"ppdd login '(.*)'")[1]
        assert link.startswith(f"{url}/setup#ppdd_")
        assert get(url, "/api/v1/system/live") == (200, {"status": "alive"})
        assert get(url, "/.well-known/ppdd.json")[1]["site_id"] == "a"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        with pytest.raises(BadConfigError, match="another node runs in"), alone_in(folder):
            pass
        node.wait_for("worker.ready")
        status, ready = get(url, "/api/v1/system/ready")
        assert (status, ready["ready"]) == (200, True)
        below = descendants(node.process.pid)
        assert below
        node.process.send_signal(signal.SIGINT)
        assert node.process.wait(WAIT) == 0
        assert not [pid for pid in below if alive(pid)]
        node.reader.join(5)
        assert node.lines[-1] == "the node has stopped"
        assert unexpected(node.lines) == []


# What a node says from its start to its end: a line for each change of state, and how to log in.
SAID = (
    r"database\.migrated",
    r"^a at http://127\.0\.0\.1:\d+$",
    r"^signing key [0-9a-f ]{79}$",
    r"^nobody can log in yet; open this in a browser",
    r"^  http://127\.0\.0\.1:\d+/setup#ppdd_\S+$",
    r"^or do it in another terminal:$",
    r"^  ppdd login '\S+'$",
    r"^Ctrl-C stops the node$",
    r"worker\.ready",
    r"node\.stopping",
    r"worker\.stopped",
    r"^the node has stopped$",
)


def unexpected(lines: list[str]) -> list[str]:
    """Return the lines that are none of those, and the patterns that are not there exactly once."""
    found = [[pattern for pattern in SAID if re.search(pattern, line)] for line in lines]
    counts = Counter(pattern for patterns in found for pattern in patterns)
    strange = [line for line, patterns in zip(lines, found, strict=True) if not patterns]
    return strange + [pattern for pattern in SAID if counts[pattern] != 1]


@pytest.mark.e2e
def test_killed_a_node_leaves_nothing_running(tmp_path: Path) -> None:
    with running("node", "up", "--data-dir", str(tmp_path / "node"), "--port", "0") as node:
        node.wait_for("worker.ready")
        below = descendants(node.process.pid)
        assert len(below) >= 2
        node.process.kill()
        until = time.monotonic() + WAIT
        while [pid for pid in below if alive(pid)]:
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    broken = {**clean_environment(), "PPDD_NO_SUCH_SETTING": "1", "PPDD_DATA_DIR": str(tmp_path)}
    crew = Crew(1, broken)  # it ends at once: a setting is unknown
    first = crew.members[0].process
    try:
        assert first.wait(WAIT) == 1
        until = time.monotonic() + WAIT
        while crew.members[0].process is first:
            assert time.monotonic() < until
            crew.look_after()
            time.sleep(0.05)
        assert crew.members[0].wait > 1
    finally:
        crew.kill()
        crew.members[0].process.wait()
    assert crew.gone()


def invoke(*words: str) -> tuple[int, BaseException | None, str]:
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.exception, done.output


def test_other_machines_are_spoken_to_over_tls_only(tmp_path: Path) -> None:
    _, refused, _ = invoke("node", "up", "--host", "0.0.0.0", "--data-dir", str(tmp_path / "n"))
    assert isinstance(refused, BadConfigError)
    assert "--cert" in str(refused)
    assert not (tmp_path / "n").exists()


def test_a_port_in_use_is_one_sentence() -> None:
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(PpddError, match="port .*in use; choose another with --port"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BadConfigError, match="cannot be used"),
        alone_in(tmp_path / "file" / "node"),
    ):
        pass


def test_workers_are_told_what_options_chose(tmp_path: Path) -> None:
    told = environment(
        {"PPDD_SITE_ID_FILE": "/gone", "PATH": "/bin"},
        {"site_id": "b", "data_dir": tmp_path, "data_roots": [tmp_path / "x", tmp_path / "y"]},
    )
    settings = load_settings(told)
    assert (settings.site_id, settings.data_dir) == ("b", tmp_path)
    assert settings.data_roots == (tmp_path / "x", tmp_path / "y")
    assert told["PATH"] == "/bin"


def test_serving_refuses_a_database_without_its_tables(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ppdd_core.cli",
            "node",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**clean_environment(), "PPDD_DATA_DIR": str(tmp_path / "node")},
    )
    assert done.returncode == 2
    assert "ppdd node migrate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_health_check_of_nothing_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    code, _, _ = invoke("node", "healthcheck", "--port", str(port))
    assert code == 1


def test_the_description_is_printed_without_a_node() -> None:
    code, _, output = invoke("node", "openapi")
    assert code == 0
    assert json.loads(output)["openapi"].startswith("3.1")


# ------------------------------------------------------------------------------------- node init

WANTED = Deployment("hospital-a", "St. Mary's", "node.hospital.example", 443, Path("images"), "cpu")


def test_init_makes_every_secret_and_prints_none(tmp_path: Path) -> None:
    code, _, output = invoke(
        "node", "init", str(tmp_path), "--site", "hospital-a", "--profile", "gpu"
    )
    assert code == 0
    secrets = tmp_path / "secrets"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    texts = {path.name: path.read_text() for path in secrets.iterdir()}
    for name in ("secret_key", "database_password", "broker_password", "store_secret_key"):
        assert secret_fault(texts[name]) is None
        assert texts[name] not in output
    assert f"requirepass {texts['broker_password']}" in texts["broker_config"]
    assert "COMPOSE_PROFILES=gpu" in (tmp_path / ".env").read_text()
    assert not [text for text in texts.values() if text in (tmp_path / ".env").read_text()]


def test_init_makes_all_that_compose_asks_for(tmp_path: Path) -> None:
    compose = (Path(__file__).resolve().parents[3] / "docker-compose.yml").read_text()
    write_deployment(tmp_path, WANTED, None, None)
    asked = set(re.findall(r"file: \./secrets/(\w+)", compose))
    assert {path.name for path in (tmp_path / "secrets").iterdir()} == asked
    told = set(re.findall(r"^([A-Z_]+)=", (tmp_path / ".env").read_text(), re.MULTILINE))
    needed = set(re.findall(r"\$\{(\w+):\?", compose))
    assert needed <= told


def test_init_never_overwrites(tmp_path: Path) -> None:
    write_deployment(tmp_path, WANTED, None, None)
    before = (tmp_path / "secrets" / "secret_key").read_text()
    with pytest.raises(BadConfigError, match="is there already"):
        write_deployment(tmp_path, WANTED, None, None)
    assert (tmp_path / "secrets" / "secret_key").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {".env", "secrets"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"host": "https://node"}, "--public-host"),
        ({"host": "a b"}, "--public-host"),
        ({"site_name": 'a"b'}, "--site-name"),
        ({"site_name": "a\nPPDD_X=1"}, "--site-name"),
        ({"site_id": "Hospital A"}, "PPDD_SITE_ID"),
        ({"images": Path("$(rm)")}, "--images"),
    ],
)
def test_init_refuses_what_could_not_work(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    import dataclasses

    with pytest.raises(BadConfigError, match=said):
        write_deployment(tmp_path, dataclasses.replace(WANTED, **change), None, None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_init_takes_a_certificate_with_its_key_and_no_other(tmp_path: Path) -> None:
    for name in ("one", "two"):
        certificate, key = self_signed("node.example")
        (tmp_path / f"{name}.crt").write_text(certificate)
        (tmp_path / f"{name}.key").write_text(key)
    with pytest.raises(BadConfigError, match="is not the key of"):
        write_deployment(tmp_path / "a", WANTED, tmp_path / "one.crt", tmp_path / "two.key")
    write_deployment(tmp_path / "b", WANTED, tmp_path / "one.crt", tmp_path / "one.key")
    written = (tmp_path / "b" / "secrets" / "tls_certificate").read_text()
    assert written == (tmp_path / "one.crt").read_text()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_certificate_signed_by_itself_is_trusted_where_it_is_known(
    tmp_path: Path, host: str
) -> None:
    certificate, key = self_signed(host)
    (tmp_path / "pair").write_text(certificate + key)
    (tmp_path / "known").write_text(certificate)
    server, client = (
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER),
        ssl.create_default_context(cafile=tmp_path / "known"),
    )
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server.load_cert_chain(tmp_path / "pair")
    theirs, ours = socket.socketpair()
    with theirs, ours:
        thread = threading.Thread(
            target=lambda: server.wrap_socket(theirs, server_side=True).close()
        )
        thread.start()
        with client.wrap_socket(ours, server_hostname=host) as secure:
            der = secure.getpeercert(binary_form=True)
        thread.join()
    assert der == x509.load_pem_x509_certificate(certificate.encode()).public_bytes(Encoding.DER)

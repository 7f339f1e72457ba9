from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ppdd_core.errors import BadConfigError
from ppdd_core.package.signature import load_or_create_key
from services import doctor
from services.cli.secret_files import self_signed
from services.kit.migrate import upgrade
from services.kit.resources import Resources, open_resources
from services.settings import Settings, load_settings


def by_part(findings: Iterator[doctor.Finding]) -> dict[str, doctor.Finding]:
    return {one.part: one for one in findings}


@pytest.fixture
def node(settings: Settings) -> Iterator[Resources]:
    upgrade(settings)
    with open_resources(settings) as made:
        load_or_create_key(settings.signing_key)
        yield made


def test_a_new_node_is_well_but_for_its_worker(
    node: Resources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        doctor, "TORCH_SECONDS", 0.01
    )  # importing it takes seconds, and is not the matter here
    found = by_part(doctor.examine(node))
    assert {part for part, one in found.items() if one.result == "FAIL"} <= {"secret key", "torch"}
    assert found["worker"].result == "WARN"
    assert found["database"].result == "PASS"
    assert found["object store"].result == "PASS"
    assert all(one.fix for one in found.values() if one.result != "PASS")


def test_an_open_folder_and_an_open_key_are_found(node: Resources) -> None:
    settings = node.settings
    settings.data_dir.chmod(0o755)
    settings.signing_key.chmod(0o644)
    (settings.data_dir / "keys" / "secret-key").write_text("short")
    assert doctor.data_dir(settings).fix == f"chmod 700 {settings.data_dir}"
    assert "chmod 600" in doctor.signing_key(settings).seen
    assert doctor.secret_key(settings).result == "FAIL"


def test_a_database_that_is_away_or_of_another_version_is_found(
    settings: Settings, tmp_path: Path
) -> None:
    assert "ppdd node up" in doctor.database(settings).fix
    (settings.data_dir).mkdir()
    (settings.data_dir / "node.db").touch()
    assert "no tables yet" in doctor.database(settings).seen
    away = load_settings(
        {}, data_dir=tmp_path, database={"url": "postgresql+psycopg://nobody@127.0.0.1:1/none"}
    )
    found = doctor.database(away)
    assert (found.result, "does not answer" in found.seen) == ("FAIL", True)


def test_a_store_that_cannot_be_written_is_found(node: Resources) -> None:
    (node.settings.data_dir / "objects").write_text("in the way")
    assert doctor.store(node).result == "FAIL"


def test_data_roots_that_are_not_there_are_found(settings: Settings, tmp_path: Path) -> None:
    gone = settings.model_copy(update={"data_roots": (tmp_path / "gone",)})
    assert str(tmp_path / "gone") in doctor.data_roots(gone).seen
    assert doctor.data_roots(settings).result == "PASS"


def test_a_disk_without_its_reserve_is_found(settings: Settings) -> None:
    limits = settings.limits.model_copy(update={"disk_reserve_bytes": 2**60})
    assert doctor.disk(settings.model_copy(update={"limits": limits})).result == "FAIL"


@contextmanager
def other_node(
    *, body: bytes = b"", date: datetime | None = None, certificate: Path | None = None
) -> Iterator[str]:
    """Serve one well-known document, as another hospital's node would."""
    told = body or (
        b'{"site_id": "b", "site_name": "Hospital B", "software": "ppdd 1", "key": "'
        + b"ab" * 32
        + b'"}'
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", format_datetime(date or datetime.now(UTC), usegmt=True))
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that does not trust us hangs up

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "pair.pem"
    path.write_text("".join(self_signed("127.0.0.1")))
    return path


def test_the_way_to_another_node_over_tls(
    settings: Settings, certificate: Path, tmp_path: Path
) -> None:
    authority = tmp_path / "authority.pem"
    authority.write_text(certificate.read_text().partition("-----BEGIN PRIVATE")[0])
    trusting = settings.model_copy(
        update={"pull": settings.pull.model_copy(update={"ca_file": authority})}
    )
    with other_node(certificate=certificate) as url:
        found = by_part(doctor.examine_peer(trusting, url))
        untrusting = by_part(doctor.examine_peer(settings, url))
    assert {one.result for one in found.values()} == {"PASS"}
    assert "Hospital B (b)" in found["peer: answer"].seen
    assert "compare it with the hospital" in found["peer: key"].fix
    assert untrusting["peer: TLS"].result == "FAIL"
    assert "PPDD_PULL__CA_FILE" in untrusting["peer: TLS"].fix


def test_another_clock_and_no_tls_are_said(settings: Settings) -> None:
    with other_node(date=datetime.now(UTC) - timedelta(minutes=5)) as url:
        found = by_part(doctor.examine_peer(settings, url))
    assert found["peer: clock"].result == "FAIL"
    assert "behind" in found["peer: clock"].seen
    assert found["peer: TLS"].result == "WARN"


def test_what_is_no_node_is_said_to_be_none(settings: Settings) -> None:
    with other_node(body=b"<html>hello</html>") as url:
        found = by_part(doctor.examine_peer(settings, url))
    assert found["peer: answer"].result == "FAIL"


def test_a_closed_port_and_no_address_are_said(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    found = by_part(doctor.examine_peer(settings, f"http://127.0.0.1:{port}"))
    assert list(found) == ["peer: name", "peer: connection"]
    assert found["peer: connection"].result == "FAIL"
    with pytest.raises(BadConfigError, match="--peer"):
        list(doctor.examine_peer(settings, "node.example"))


def test_a_certificate_about_to_expire_is_said(certificate: Path, settings: Settings) -> None:
    with other_node(certificate=certificate) as url:
        public = settings.model_copy(update={"public_url": url})
        assert doctor.certificate(public).result == "PASS"
        late = doctor.CERTIFICATE_DAYS
        try:
            doctor.CERTIFICATE_DAYS = 10_000
            assert doctor.certificate(public).result == "WARN"
        finally:
            doctor.CERTIFICATE_DAYS = late

"""Another hospital's node that serves a real package, and lies about it in one way at a time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ppdd_core.package.archive import write_archive
from ppdd_core.package.signature import fingerprint
from tests.services.packages import key_of, package_files

TOKEN = "ppdd_issued-by-hospital-b-0123456789"
API = "/api/v1/packages/hospital-b/cxr/versions/1.0.0"
HALF = 2  # part of the archive that a broken connection brings: one half


@dataclass
class LyingPeer:
    """What it serves, how it lies, and what it was asked."""

    archive: bytes
    lie: str = ""
    lies_left: int = 10**6  # how often it lies before it turns honest
    key: str = field(default_factory=lambda: fingerprint(key_of("hospital-b")))
    url: str = ""
    asked: list[Mapping[str, str]] = field(default_factory=list)  # headers of requests for bytes

    @property
    def digest(self) -> str:
        return sha256(self.archive).hexdigest()

    def tells(self, lie: str) -> bool:
        """Return whether to lie in this way now."""
        if self.lie != lie or self.lies_left <= 0:
            return False
        self.lies_left -= 1
        return True

    def well_known(self) -> dict[str, Any]:
        key = fingerprint(key_of("somebody")) if self.tells("other key") else self.key
        site = "hospital-x" if self.tells("other site") else "hospital-b"
        return {"site_id": site, "site_name": "B", "key": key, "api": ["/api/v1"], "software": "x"}

    def offer(self) -> dict[str, Any]:
        size = 2**50 if self.tells("huge size") else len(self.archive)
        name = "other" if self.tells("other name") else "cxr"
        state = "yanked" if self.tells("yanked") else "released"
        return {
            "site": "hospital-b",
            "name": name,
            "version": "1.0.0",
            "state": state,
            "archive_sha256": self.digest,
            "archive_size": size,
        }


@contextmanager
def lying(
    folder: Path,
    lie: str = "",
    *,
    lies: int = 10**6,
    files: Mapping[str, bytes] | None = None,
    padding: int = 0,
) -> Iterator[LyingPeer]:
    """Yield a peer that serves `files` (default: a sound package); `padding` bytes of nothing make it slow to send."""
    path = folder / "served.zip"
    write_archive(files or package_files("hospital-b"), path)
    peer = LyingPeer(path.read_bytes() + b"\0" * padding, lie, lies)
    path.unlink()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(peer))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    peer.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _handler(peer: LyingPeer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):
                if self.path == "/.well-known/ppdd.json":
                    self._json(peer.well_known())
                elif self.headers["Authorization"] != f"Bearer {TOKEN}":
                    self._plain(401, b"who are you? secret-of-the-peer")
                elif self.path == API:
                    self._describe()
                elif self.path == f"{API}/archive":
                    peer.asked.append(dict(self.headers))
                    self._archive()
                else:
                    self._plain(404, b"secret-of-the-peer")

        def _describe(self) -> None:
            if peer.tells("no json"):
                self._plain(200, b"<html>secret-of-the-peer</html>")
            elif peer.tells("deep json"):
                self._plain(200, b"[" * 100_000)
            elif peer.tells("endless json"):
                self._head(200, {})
                while True:
                    self.wfile.write(b" " * 65536)
            elif peer.tells("gone"):
                self._plain(410, b"secret-of-the-peer")
            elif peer.tells("busy"):
                self._plain(503, b"secret-of-the-peer")
            else:
                self._json(peer.offer())

        def _archive(self) -> None:
            data, size = peer.archive, len(peer.archive)
            start, status = 0, 200
            headers = {"ETag": f'"sha256:{peer.digest}"'}
            wanted = self.headers["Range"]
            if wanted and not peer.tells("ignores range"):
                start, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                shown = start + 1 if peer.tells("other range") else start
                headers["Content-Range"] = f"bytes {shown}-{size - 1}/{size}"
            body = data[start:]
            if peer.tells("redirects"):
                self._head(302, {"Location": "http://127.0.0.1:1/elsewhere", "Content-Length": "0"})
                return
            if peer.tells("other etag"):
                headers["ETag"] = '"sha256:' + "0" * 64 + '"'
            if peer.tells("no range"):
                self._plain(416, b"secret-of-the-peer")
                return
            if peer.tells("compressed"):
                headers["Content-Encoding"] = "gzip"
            if peer.tells("wrong bytes"):
                middle = len(body) // 2
                body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
            if peer.tells("announces more"):
                self._head(status, {**headers, "Content-Length": str(2**60)})
                self.wfile.write(body)
                return
            if peer.tells("endless"):
                self._head(status, headers)
                while True:
                    self.wfile.write(body)
            if peer.tells("drip"):
                self._head(status, {**headers, "Content-Length": str(len(body))})
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.02)
                return
            self._head(status, {**headers, "Content-Length": str(len(body))})
            if peer.tells("breaks off"):
                self.wfile.write(body[: len(body) // HALF])
            elif peer.tells("breaks off at once"):
                pass
            elif peer.tells("silence"):
                self.wfile.write(body[: len(body) // HALF])
                self.wfile.flush()
                time.sleep(3)
            else:
                self.wfile.write(body)

        def _json(self, value: dict[str, Any]) -> None:
            self._plain(200, json.dumps(value).encode())

        def _plain(self, status: int, data: bytes) -> None:
            self._head(status, {"Content-Length": str(len(data))})
            self.wfile.write(data)

        def _head(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()

    return Handler

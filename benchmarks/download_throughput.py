"""Bytes a second of a download through the API on loopback, beside a direct read of the same object from the store.

    python benchmarks/download_throughput.py [--megabytes 200] [--rounds 5]

The server is the real one in a process of its own, without a proxy; the client does nothing with the bytes. Reading
directly verifies the object, as the download does. The rounds alternate; the medians, and their quotient, are printed
as JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ppdd_core.package import manifest as manifests
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role, role_scopes
from services.catalogue.models import Package, PackageFile, PackageVersion
from services.kit.migrate import upgrade
from services.kit.resources import Resources, open_resources
from services.settings import Settings, load_settings

PATH = "/api/v1/packages/bench/large/versions/1.0.0"
SERVE = """
import sys, uvicorn
from services.app import create_app
from services.kit.resources import open_resources
from services.settings import load_settings
with open_resources(load_settings()) as resources:
    uvicorn.run(create_app(resources), fd=int(sys.argv[1]), log_level="warning")
"""


def main() -> None:
    """Measure, and print what was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=200)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings({}, site_id="bench", data_dir=Path(folder))
        with open_resources(settings, send=lambda *_: None) as resources:
            sha256, token = _fill(resources, chosen.megabytes * 2**20)
            found = _measure(settings, resources, sha256, token, chosen.rounds)
    sys.stdout.write(json.dumps(found | {"megabytes": chosen.megabytes}, indent=2) + "\n")


def _fill(resources: Resources, size: int) -> tuple[str, str]:
    """Put one large object into the store, as a file of a released version; return its digest and a token."""
    upgrade(resources.settings)
    sha256 = resources.store.put(os.urandom(size))
    with resources.transaction() as session:
        package = Package(site="bench", name="large")
        session.add(package)
        session.flush()
        version = PackageVersion(
            package_id=package.id, version="1.0.0", state="released", digest=sha256, key=sha256, site_name="bench",
            manifest={}, classes=[], images_per_class=1, image_size=8, archive_sha256=sha256, archive_size=size,
            verdict="passed", origin="made",
        )  # fmt: skip
        session.add(version)
        session.flush()
        session.add(
            PackageFile(
                version_id=version.id, path=manifests.TENSORS, sha256=sha256, size=size,
                media_type="application/octet-stream",
            )
        )  # fmt: skip
        user = auth.create_user(
            session, SYSTEM, username="bench", display_name="Bench", role=Role.RESEARCHER
        )
        scopes = role_scopes(Role.RESEARCHER)
        return sha256, auth.issue_token(session, SYSTEM, user, name="b", scopes=scopes, days=1)[1]


def _measure(
    settings: Settings, resources: Resources, sha256: str, token: str, rounds: int
) -> dict[str, float]:
    listener = socket.create_server(("127.0.0.1", 0))
    environ = {**os.environ, "PPDD_DATA_DIR": str(settings.data_dir), "PPDD_SITE_ID": "bench"}
    server = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", SERVE, str(listener.fileno())],
        env=environ,
        pass_fds=(listener.fileno(),),
    )
    port = listener.getsockname()[1]
    try:
        direct, served = [], []
        for _ in range(rounds + 1):  # the first round warms up
            direct.append(_directly(resources, sha256))
            served.append(_through_api(port, token))
    finally:
        server.terminate()
        server.wait()
        listener.close()
    slow, fast = statistics.median(served[1:]), statistics.median(direct[1:])
    return {
        "direct_megabytes_per_second": round(fast / 1e6, 1),
        "api_megabytes_per_second": round(slow / 1e6, 1),
        "share": round(slow / fast, 3),
    }


def _directly(resources: Resources, sha256: str) -> float:
    began, size = time.perf_counter(), 0
    for piece in resources.store.read(sha256):
        size += len(piece)
    return size / (time.perf_counter() - began)


def _through_api(port: int, token: str) -> float:
    buffer, size = bytearray(2**20), 0
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(
        "GET", f"{PATH}/files/{manifests.TENSORS}", headers={"Authorization": f"Bearer {token}"}
    )
    answer = connection.getresponse()
    assert answer.status == 200, answer.status
    while count := answer.readinto(buffer):
        size += count
    connection.close()
    return size / (time.perf_counter() - began)


if __name__ == "__main__":
    main()

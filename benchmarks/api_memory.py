"""Peak memory of the API's process while large objects are uploaded, downloaded and imported over loopback.

    python benchmarks/api_memory.py --gib 2 --out docs/results/api_memory.json
    python benchmarks/api_memory.py --import-images 720

The API runs as a process of its own: embedded, on SQLite and a folder. The upload is a dataset; what is downloaded is
the archive of a package whose row is written into the database by hand, because no real package is so large.
`--import-images` imports a real, signed package instead: so many 512 x 512 images of noise, 1 MiB each, and a preview
of 256 KiB for each. The peak is the kernel's (VmHWM). `--store HOST:PORT` measures with an S3 server instead of the
folder; its keys are taken from PPDD_STORE__ACCESS_KEY and PPDD_STORE__SECRET_KEY.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from services.app import create_app
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role, role_scopes
from services.catalogue.models import Origin, Package, PackageVersion, VersionState
from services.kit.db import Base, now
from services.kit.resources import Resources, open_resources
from services.settings import load_settings
from tests.services import packages

MIB = 2**20
ENTRY = 64 * MIB
LIMIT_MIB = 512


def main() -> None:
    """Measure in a temporary folder and print JSON, also into --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--at-once", type=int, default=1, help="uploads, then downloads, at a time")
    parser.add_argument("--import-images", type=int, default=0, help="import such a package")
    parser.add_argument("--store", default="", help="HOST:PORT of an S3 server")
    parser.add_argument("--folder", type=Path, help="where to put it; needs three times the size")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make-package", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        _serve(arguments.serve)
        return
    if arguments.make_package:
        _make_package(arguments.make_package, arguments.import_images)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = (
            _measure_import(Path(folder), arguments.import_images, arguments.store)
            if arguments.import_images
            else _measure(
                Path(folder), int(arguments.gib * 2**30), arguments.store, arguments.at_once
            )
        )
    text = json.dumps(result, indent=2) + "\n"
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
    print(text, end="")  # noqa: T201 - the result
    sys.exit(0 if result["passes"] else 1)


def _measure(folder: Path, size: int, store: str, at_once: int) -> dict[str, Any]:
    archives = [_make_zip(folder / f"{number}.zip", size, number) for number in range(at_once)]
    with _api(folder / "node", store) as (port, pid, resources, token):
        idle = _peak_mib(pid)
        uploads, up = _timed([_upload(port, token, path, at) for at, path in enumerate(archives)])
        after_upload = _peak_mib(pid)
        made = [json.loads(text) for text in uploads]
        address = _publish(resources, made[0]["upload_sha256"], made[0]["upload_size"])
        downloads, down = _timed([_download(port, token, address) for _ in archives])
        after_download = _peak_mib(pid)
    total = sum(path.stat().st_size for path in archives)
    verified = all(text.split()[0] == made[0]["upload_sha256"] for text in downloads)
    return {
        "bytes": total,
        "at_once": at_once,
        "store": "s3" if store else "folder",
        "peak_mib": {"idle": idle, "upload": after_upload, "download": after_download},
        "limit_mib": LIMIT_MIB,
        "mib_per_second": {
            "upload": round(total / MIB / up, 1),
            "download": round(total / MIB / down, 1),
        },
        "download_verified": verified,
        "passes": verified and after_download < LIMIT_MIB,
    }


def _measure_import(folder: Path, images: int, store: str) -> dict[str, Any]:
    subprocess.run(  # noqa: S603 - ourselves; torch's memory is not to be ours
        [sys.executable, __file__, "--make-package", str(folder / "package.zip"), "--import-images", str(images)],
        check=True,
    )  # fmt: skip
    path = folder / "package.zip"
    size = path.stat().st_size
    with _api(folder / "node", store) as (port, pid, _, token):
        idle = _peak_mib(pid)
        (answer,), took = _timed([_send(port, token, path, "/api/v1/packages")])
        after = _peak_mib(pid)
    imported = json.loads(answer)
    return {
        "bytes": size,
        "images": images,
        "store": "s3" if store else "folder",
        "peak_mib": {"idle": idle, "import": after},
        "limit_mib": LIMIT_MIB,
        "seconds": round(took, 1),
        "state": imported["state"],
        "passes": after < LIMIT_MIB,
    }


def _make_package(path: Path, images: int) -> None:
    """Write a signed package of another hospital with so many large images."""
    packages.SIZE, packages.PER_CLASS = 512, images // len(packages.CLASSES)
    packages.write_package(path.parent, packages.package_files("hospital-b"), path.name)


def _make_zip(path: Path, size: int, seed: int) -> Path:
    """Write a ZIP of about `size` bytes whose entries are stored, all different."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for number in range(max(1, size // ENTRY)):
            block = hashlib.shake_256(f"{seed} {number}".encode()).digest(MIB)
            with archive.open(f"CLASS/{number}.png", "w", force_zip64=True) as entry:
                for _ in range(ENTRY // MIB):
                    entry.write(block)
    return path


@contextmanager
def _api(data_dir: Path, store: str) -> Iterator[tuple[int, int, Resources, str]]:
    """Yield the port and process of a running API, its resources opened here too, and a token."""
    given = {"PPDD_DATA_DIR": str(data_dir)}
    if store:
        given |= {
            "PPDD_STORE__KIND": "minio", "PPDD_STORE__ENDPOINT": store, "PPDD_STORE__SECURE": "false",
        }  # fmt: skip
        given |= {k: v for k, v in os.environ.items() if k.startswith("PPDD_STORE__")}
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PPDD_")} | given
    with open_resources(load_settings(given)) as resources:
        Base.metadata.create_all(resources.engine)
        token = _token(resources)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        process = subprocess.Popen([sys.executable, __file__, "--serve", str(port)], env=environ)  # noqa: S603
        try:
            _wait(port)
            yield port, process.pid, resources, token
        finally:
            process.terminate()
            process.wait()


def _serve(port: int) -> None:
    with open_resources(load_settings()) as resources:
        uvicorn.run(create_app(resources), host="127.0.0.1", port=port, log_level="warning")


def _wait(port: int) -> None:
    for _ in range(600):
        with suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/api/v1/system/live")
            connection.getresponse().read()
            return
        time.sleep(0.1)
    raise SystemExit("the API did not start")


def _token(resources: Resources) -> str:
    with resources.sessions.begin() as session:
        user = auth.create_user(
            session, SYSTEM, username="measurer", display_name="Measurer", role=Role.STEWARD
        )
        scopes = role_scopes(Role.STEWARD)
        return auth.issue_token(session, SYSTEM, user, name="measure", scopes=scopes, days=1)[1]


def _publish(resources: Resources, sha256: str, size: int) -> str:
    """Write the row of a released package whose archive is the object, and return its address."""
    with resources.sessions.begin() as session:
        package = Package(site=resources.settings.site_id, name="large")
        session.add(package)
        session.flush()
        session.add(
            PackageVersion(
                package_id=package.id, version="1.0.0", state=VersionState.RELEASED.value, digest="0" * 64,
                key="0" * 64, site_name="", manifest={}, classes=[], images_per_class=1, image_size=16,
                archive_sha256=sha256, archive_size=size, verdict="passed", origin=Origin.MADE.value, released_at=now(),
            )
        )  # fmt: skip
    return f"/api/v1/packages/{resources.settings.site_id}/large/versions/1.0.0/archive"


def _upload(port: int, token: str, path: Path, number: int) -> list[str]:
    return _send(port, token, path, f"/api/v1/datasets/uploads?name=large-{number}")


def _send(port: int, token: str, path: Path, address: str) -> list[str]:
    return [sys.executable, "-c", _UPLOAD, str(port), token, str(path), address]


def _download(port: int, token: str, address: str) -> list[str]:
    return [sys.executable, "-c", _DOWNLOAD, str(port), token, address]


# The clients are processes of their own, so that theirs is not the time of the API.
_UPLOAD = """
import http.client, os, sys
port, token, path, address = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port), blocksize=1 << 20)
with open(path, "rb") as file:
    headers = {"Authorization": "Bearer " + token, "Content-Type": "application/zip",
               "Content-Length": str(os.path.getsize(path))}
    connection.request("POST", address, file, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
if answer.status != 201:
    sys.exit(text)
print(text)
"""
_DOWNLOAD = """
import hashlib, http.client, sys
port, token, address = sys.argv[1:]
connection = http.client.HTTPConnection("127.0.0.1", int(port))
connection.request("GET", address, headers={"Authorization": "Bearer " + token})
answer = connection.getresponse()
if answer.status != 200:
    sys.exit(answer.read().decode())
digest, size = hashlib.sha256(), 0
while chunk := answer.read(1 << 20):
    digest.update(chunk)
    size += len(chunk)
print(digest.hexdigest(), size)
"""


def _timed(commands: list[list[str]]) -> tuple[list[str], float]:
    """Run the commands at once; return what they print and the seconds until the last had ended."""
    began = time.perf_counter()
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    took = time.perf_counter() - began
    if any(process.returncode for process in running):
        raise SystemExit("a transfer failed; its message is above")
    return outputs, took


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return round(int(found[1]) / 1024, 1)


if __name__ == "__main__":
    main()

"""`make container-check`: the containers for real, from `ppdd node init` through a whole job that loses its worker.

Needs an engine behind `docker compose` and nothing else; everything happens in a temporary folder and is removed. Where
images cannot be pulled or built by compose, `--no-build` takes those that are there. Prints one line per step.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppdd_core.data.phantom import CLASSES, write_phantoms
from ppdd_core.package.verify import verify_package
from services.cli.remote import Login, Node, open_node
from services.cli.session import logged_in, make_token, split_link

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    *(
        "docker-compose.yml",
        "deploy",
        ".dockerignore",
        "ppdd_core",
        "services",
        "worker",
        "migrations",
    ),
    *("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "SECURITY.md"),
    *("requirements.lock", "requirements-worker.lock", "requirements-dev.lock"),
)
PORT = 18443
RECIPE = {
    "image_size": 32, "net.width": 16, "net.depth": 3,
    "teacher.teachers": 2, "teacher.epochs": 5, "teacher.epoch_images": 600,
    "distill.iterations": 60, "distill.max_start_epoch": 3,
    "detector.epochs": 20, "privacy.members": 60,
    "evaluation.full_epochs": 2, "evaluation.full_epoch_images": 300,
}  # fmt: skip
SLOW = 900  # seconds until a job counts as stuck
API_BYTES = 250_000_000  # the API's image, its base included, stays below


def main() -> None:
    """Run every step; leaves with 1 at the first that fails, after showing the containers' logs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-build", action="store_true", help="take the images that are there")
    parser.add_argument("--override", type=Path, help="another compose file, put over the first")
    parser.add_argument("--keep", action="store_true", help="leave the containers running")
    options = parser.parse_args()
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        sys.exit("no engine answers `docker info` here: the containers were not checked")
    with tempfile.TemporaryDirectory(prefix="ppdd-containers-") as name:
        folder = Path(name)
        compose = Compose(folder, options.override)
        prepare(folder)
        try:
            with step("images"):
                if not options.no_build:
                    compose("build")
            with step("the API's image is small and has no torch"):
                check_image(f"ppdd-api:{os.environ.get('PPDD_VERSION', 'local')}")
            with step("up, every part healthy"):
                compose("up", "-d", "--no-build", "--wait", "--wait-timeout", "300")
            check(folder, compose)
        except BaseException:
            compose("ps", "-a", must=False)
            compose("logs", "--tail", "40", must=False)
            raise
        finally:
            if not options.keep:
                compose("down", "-v", "--timeout", "20", must=False)


class Compose:
    """`docker compose` for one folder."""

    def __init__(self, folder: Path, override: Path | None) -> None:
        files = [
            "-f",
            "docker-compose.yml",
            *(["-f", str(override.absolute())] if override else []),
        ]
        self.command = ["docker", "compose", *files]
        self.folder = folder

    def __call__(self, *arguments: str, must: bool = True) -> None:
        """Run it, showing what it says."""
        subprocess.run(
            [*self.command, *arguments], cwd=self.folder, check=must, stdin=subprocess.DEVNULL
        )

    def read(self, *arguments: str) -> str:
        """Return what it prints."""
        done = subprocess.run(
            [*self.command, *arguments],
            cwd=self.folder,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout


def prepare(folder: Path) -> None:
    """Lay out a fresh installation, with some drawn X-rays."""
    with step("ppdd node init"):
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
            copy(ROOT / part, folder / part)
        images = folder / "images"
        write_phantoms(
            images / "phantoms",
            images=400,
            image_size=32,
            seed=0,
            proportions=dict.fromkeys(CLASSES, 1.0),
        )
        os.chmod(folder, 0o755)  # noqa: PTH101 - the worker's user looks into the images
        options = [
            "--site",
            "hospital-a",
            "--public-host",
            "localhost",
            "--port",
            str(PORT),
            "--images",
            str(images),
        ]
        subprocess.run(
            [sys.executable, "-m", "ppdd_core.cli", "node", "init", str(folder), *options],
            check=True,
        )


def check(folder: Path, compose: Compose) -> None:
    """Go through a whole job as an administrator would, and through what IT does around it."""
    with step("the first administrator, over TLS"):
        link = next(
            line
            for line in compose.read("exec", "-T", "api", "ppdd", "node", "setup-link").splitlines()
            if "#" in line
        )
        url, token = split_link(link.strip())
        nobody = Login(url, "", str(folder / "secrets" / "tls_certificate"))
        with open_node(nobody) as node:
            person = {
                "username": "admin",
                "display_name": "Admin",
                "password": secrets.token_urlsafe(18),
            }
            with logged_in(node, "/setup", {**person, "token": token}) as session:
                login = make_token(node, session, days=1)
    with open_node(login) as node:
        with step("register and check a dataset"):
            node.post("/datasets", {"name": "phantoms", "path": "/images/phantoms"})
            finish(
                node,
                node.post("/jobs", {"kind": "check", "dataset": "phantoms", "image_size": 32})[
                    "id"
                ],
            )
        with step("a distillation that loses its worker to SIGKILL"):
            package = {
                "name": "chest",
                "version": "1.0.0",
                "licence": "CC0-1.0",
                "purposes": ["DUO:0000042"],
            }
            body = {
                "kind": "distill",
                "dataset": "phantoms",
                "preset": "quick",
                "images_per_class": 1,
                "settings": RECIPE,
                "package": package,
            }
            job_id = node.post("/jobs", body)["id"]
            while (node.get(f"/jobs/{job_id}")["progress"] or {}).get("stage") != "distillation":
                time.sleep(0.5)
            compose("kill", "-s", "KILL", "worker-cpu")
            compose("up", "-d", "--no-build", "worker-cpu")
            job = finish(node, job_id)
            print(
                f"    {len(job['history'])} attempts: {', '.join(one['outcome'] for one in job['history'])}"
            )
        with step("release, download, verify"):
            place = "/packages/hospital-a/chest/versions/1.0.0"
            reason = "a tiny recipe, only to see that everything runs"
            node.post(f"{place}/release", {"override_reason": reason})
            node.download(f"{place}/archive", folder / "chest.zip")
            found = verify_package(
                folder / "chest.zip", trusted_key=node.get("/system/info")["site"]["key"]
            )
            assert found.ok and found.trusted, found.faults
    with step("ppdd doctor"):
        compose("exec", "-T", "api", "ppdd", "doctor")
    with step("ppdd backup"):
        compose("exec", "-T", "api", "ppdd", "backup", "/var/lib/ppdd/backup.ppdd")
    with step("nothing runs as root or writes to its image"):
        for container in compose.read("ps", "-a", "-q").split():
            check_container(container)
    with step("the worker has no way out"):
        script = "import socket; socket.setdefaulttimeout(3); socket.create_connection(('192.0.2.1', 443))"
        assert subprocess.run(
            [*compose.command, "exec", "-T", "worker-cpu", "python3", "-c", script],
            cwd=folder,
            check=False,
        ).returncode


def check_image(image: str) -> None:
    """Say what every layer of the API's image takes; it must be small, start, and hold no torch."""
    command = ["docker", "history", "--human=false", "--no-trunc", "--format"]
    rows = output(*command, "{{.Size}} {{.CreatedBy}}", image).splitlines()
    layers = [(int(size), made) for size, _, made in (row.partition(" ") for row in rows)]
    for size, made in layers:
        if size:
            print(f"    {size:>12,} bytes  {made.removeprefix('/bin/sh -c ')[:80]}")
    total = sum(size for size, _ in layers)
    print(f"    {total:>12,} bytes in all")
    assert total < API_BYTES, f"{image} has {total:,} bytes, {API_BYTES:,} are allowed"
    script = "import services.app, importlib.util; assert importlib.util.find_spec('torch') is None"
    run = ["docker", "run", "--rm", "--read-only", "--network", "none"]
    output(*run, image, "python3", "-c", script)


def check_container(container: str) -> None:
    """Ask the engine, not the compose file, as whom a container runs and whether it can write to its image."""
    wanted = "{{.Name}} {{.HostConfig.ReadonlyRootfs}} {{.Config.User}}"
    name, read_only, user = output("docker", "inspect", "--format", wanted, container).split(" ")
    print(f"    {name.lstrip('/')}: user {user}")
    assert user.partition(":")[0] not in ("", "0", "root"), f"{name} runs as root"
    assert read_only == "true", f"{name} can write to its image"


def output(*command: str) -> str:
    """Return what a command prints, without the line's end."""
    done = subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.rstrip("\n")


def finish(node: Node, job_id: str) -> dict[str, Any]:
    """Return the job once it has succeeded."""
    until = time.monotonic() + SLOW
    while (job := node.get(f"/jobs/{job_id}"))["state"] in ("queued", "running"):
        assert time.monotonic() < until, f"job {job_id} is stuck: {job}"
        time.sleep(1)
    assert job["state"] == "succeeded", job["error"]
    return dict(job)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    print(f"… {title}", flush=True)
    began = time.monotonic()
    yield
    print(f"ok {title} ({time.monotonic() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()

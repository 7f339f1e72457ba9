"""Hospitals for the demo: a whole node each, as `ppdd node up` runs it, with an administrator logged in."""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.errors import CheckpointError, PpddError
from services.cli.remote import Login, Node, open_node
from services.cli.session import logged_in, split_link

USERNAME = "demo"
STOPS_WITHIN = 60  # seconds for a worker to give its job back
_ADDRESS = re.compile(r" at (https?://\S+)$")
_LINK = re.compile(r"(https?://\S+#[\w-]+)")


@dataclass(frozen=True, slots=True)
class Hospital:
    """A running node and who is logged in to it."""

    site: str
    title: str
    node: Node
    key: str  # fingerprint

    @property
    def url(self) -> str:
        """Where its node is reached."""
        return self.node.login.url


@contextmanager
def run_hospital(
    folder: Path, *, site: str, title: str, data_root: Path, settings: Mapping[str, str]
) -> Iterator[Hospital]:
    """Yield a hospital whose node lies in `folder`; its node stops cleanly on exit, and dies with this process."""
    with ExitStack() as stack:
        url, link = stack.enter_context(run_node(folder, site, title, data_root, settings))
        node = stack.enter_context(open_node(Login(url, "")))
        path, person = "/sessions", {"username": USERNAME, "password": _account(folder)}
        if link is not None:
            path, person = (
                "/setup",
                {**person, "token": split_link(link)[1], "display_name": "Demo"},
            )
        stack.enter_context(logged_in(node, path, person))
        yield Hospital(site, title, node, str(node.get("/system/info")["site"]["key"]))


@contextmanager
def run_node(
    folder: Path, site: str, title: str, data_root: Path, settings: Mapping[str, str]
) -> Iterator[tuple[str, str | None]]:
    """Run a node; yield its address and, where nobody can log in yet, its set-up link. It logs to `node.log`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PPDD_") or name == "PPDD_HOME"
    }
    command = [
        sys.executable,
        "-m",
        "ppdd_core.cli",
        "node",
        "up",
        "--port",
        "0",
        "--data-dir",
        str(folder / "node"),
    ]
    command += ["--site", site, "--site-name", title, "--data-root", str(data_root)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "node.log").open("a") as log:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "services.cli.tied", str(os.getpid()), *command],
            env={**kept, "NO_COLOR": "1", **settings},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True,
            start_new_session=True,  # Ctrl-C reaches the demo, which stops the node
        )  # fmt: skip
    try:
        yield _printed(process, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
        assert process.stdout is not None
        process.stdout.close()


def _printed(process: subprocess.Popen[str], folder: Path) -> tuple[str, str | None]:
    """Return the address and the set-up link that the node prints; PpddError where it ends instead."""
    assert process.stdout is not None
    url, link = None, None
    for line in process.stdout:
        address, found = _ADDRESS.search(line.rstrip()), _LINK.search(line)
        url = address[1] if address and url is None else url
        link = found[1] if found else link
        if url and "Ctrl-C" in line:
            return url, link
    lines = (folder / "node.log").read_text(encoding="utf-8").strip().splitlines()
    raise PpddError(
        f"a node of the demo did not start: {lines[-1] if lines else 'it said nothing'}"
    )


def _account(folder: Path) -> str:
    """Return the password of the hospital's administrator, made the first time and kept for the next."""
    path = folder / "account.json"
    if not path.exists():
        write_atomically(
            path, json_bytes({"username": USERNAME, "password": secrets.token_urlsafe(18)})
        )
    try:
        return str(json.loads(path.read_bytes())["password"])
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{path} is damaged; delete {folder} or choose another --out"
        ) from None

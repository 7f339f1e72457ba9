"""A node as commands speak to it: its address, a token, and answers or one clear refusal. Torch-free."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2

from ppdd_core.data.files import json_bytes, ppdd_home, write_atomically
from ppdd_core.errors import BadConfigError, PpddError

API = "/api/v1"
TIMEOUT = httpx2.Timeout(60.0, connect=10.0)
QUIET = 60.0  # seconds without a word on an event stream until it is asked for anew
RECONNECTS = 40  # in a row, without an event between them
PIECE = 1 << 20  # bytes of an upload sent at a time


class NodeError(PpddError):
    """The node refuses, or does not answer."""

    def __init__(self, message: str, *, status: int = 0, slug: str = "") -> None:
        super().__init__(message)
        self.status, self.slug = status, slug


@dataclass(frozen=True, slots=True)
class Login:
    """What this machine's user is known as to a node."""

    url: str
    token: str
    ca_file: str | None = None

    def save(self) -> Path:
        """Keep it for the next command, readable by its owner only."""
        path = login_file()
        write_atomically(
            path, json_bytes({"url": self.url, "token": self.token, "ca_file": self.ca_file})
        )
        return path


def login_file() -> Path:
    """Return where `ppdd login` keeps address and token: made by mkstemp, so with mode 0600."""
    return ppdd_home() / "login.json"


def find_login(url: str | None = None) -> Login:
    """Return address and token from the environment, or as `ppdd login` left them; BadConfigError where neither is."""
    saved: dict[str, Any] = {}
    if login_file().exists():
        try:
            saved = dict(json.loads(login_file().read_bytes()))
        except ValueError:
            raise BadConfigError(
                f"{login_file()} is damaged; delete it and run ppdd login again"
            ) from None
    url = url or os.environ.get("PPDD_NODE_URL") or saved.get("url")
    token = os.environ.get("PPDD_NODE_TOKEN")
    if not token and (path := os.environ.get("PPDD_NODE_TOKEN_FILE")):
        token = Path(path).read_text(encoding="utf-8").strip()
    if not token and url == saved.get("url"):
        token = saved.get("token")
    if not url or not token:
        raise BadConfigError(
            "no node to speak to: run `ppdd login URL`, or set PPDD_NODE_URL and PPDD_NODE_TOKEN (or …_TOKEN_FILE)"
        )
    return Login(url.rstrip("/"), token, saved.get("ca_file"))


@contextmanager
def known_node(url: str | None = None) -> Iterator[Node]:
    """Yield the node that this user is logged in to."""
    with open_node(find_login(url)) as node:
        yield node


@contextmanager
def open_node(login: Login) -> Iterator[Node]:
    """Yield the node behind `login`; proxies of the environment are not asked, since a node is near."""
    headers = {"Authorization": f"Bearer {login.token}"} if login.token else {}
    verify = ssl.create_default_context(cafile=login.ca_file) if login.ca_file else True
    with httpx2.Client(
        base_url=login.url, headers=headers, timeout=TIMEOUT, verify=verify, trust_env=False
    ) as client:
        yield Node(client, login)


@dataclass(frozen=True, slots=True)
class Node:
    """An open connection. Every method raises NodeError with the node's own words where it refuses."""

    client: httpx2.Client
    login: Login

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, **query: Any) -> Any:
        """Return the JSON at `path`."""
        return self._json("GET", path, params=_given(query), headers=headers)

    def post(
        self,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Return the JSON that posting `body` gives."""
        return self._json("POST", path, json=body, headers=headers)

    def delete(self, path: str, *, headers: Mapping[str, str] | None = None) -> None:
        """Remove what is at `path`."""
        self._json("DELETE", path, headers=headers)

    def rows(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """Yield every row of a list, page after page."""
        cursor: str | None = None
        while True:
            page = self.get(path, cursor=cursor, **query)
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def send(
        self, path: str, file: IO[bytes], *, media_type: str, on_progress: Any = lambda _sent: None,
        headers: Mapping[str, str] | None = None, **query: Any,
    ) -> Any:  # fmt: skip
        """Send a file as the body and return the JSON it gives; `on_progress` is told the bytes sent."""

        def pieces() -> Iterator[bytes]:
            sent = 0
            while piece := file.read(PIECE):
                yield piece
                sent += len(piece)
                on_progress(sent)

        size = os.fstat(file.fileno()).st_size
        known = {"Content-Type": media_type, "Content-Length": str(size), **(headers or {})}
        return self._json("POST", path, content=pieces(), headers=known, params=_given(query))

    def download(self, path: str, target: Path) -> None:
        """Write what is at `path` to `target`, whole or not at all; an existing file is refused."""
        if target.exists():
            raise BadConfigError(f"{target} exists already; choose another name")
        part = target.with_name(f".{target.name}.part")
        try:
            with self.client.stream("GET", API + path) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise refusal(answer)
                with part.open("wb") as file:
                    for piece in answer.iter_bytes(PIECE):
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
            part.rename(target)
        except httpx2.HTTPError as err:
            raise self._unreachable(err) from None
        finally:
            part.unlink(missing_ok=True)

    def follow(self, job_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events of a job, as (kind, data), until it has ended; a broken connection is taken up again."""
        last, failures = "", 0
        while True:
            try:
                for event in self._events(job_id, last):
                    last, failures = event.id or last, 0
                    yield event.event, json.loads(event.data or "{}")
                    if event.event == "end":
                        return
            except httpx2.HTTPError as err:
                error: Exception = err
            else:
                error = EOFError("the stream ended early")
            failures += 1
            if failures > RECONNECTS:
                raise self._unreachable(error)
            time.sleep(min(0.25 * failures, 5.0))

    def _events(self, job_id: str, last: str) -> Iterator[Any]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})}
        timeout = httpx2.Timeout(QUIET, connect=10.0)
        with self.client.stream(
            "GET", f"{API}/jobs/{job_id}/events", headers=headers, timeout=timeout
        ) as answer:
            if answer.status_code in (502, 503, 504):
                raise httpx2.ReadError("the node is starting")
            if answer.status_code != 200:
                answer.read()
                raise refusal(answer)
            yield from httpx2.EventSource(answer)

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self.client.request(method, API + path, **arguments)
        except httpx2.HTTPError as err:
            raise self._unreachable(err) from None
        if answer.status_code >= 400:
            raise refusal(answer)
        return answer.json() if answer.content else None

    def _unreachable(self, error: Exception) -> NodeError:
        return NodeError(
            f"the node at {self.login.url} does not answer ({type(error).__name__}: {error}); is it running? "
            "`ppdd doctor --peer URL` finds out where it fails"
        )


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def refusal(answer: httpx2.Response) -> NodeError:
    """Return the error for a problem document, in the node's words."""
    try:
        problem = dict(answer.json())
    except ValueError:
        return NodeError(
            f"the node answered {answer.status_code} without saying why", status=answer.status_code
        )
    slug = str(problem.get("type", "")).rpartition("/")[2]
    detail = str(problem.get("detail") or problem.get("title") or answer.status_code)
    correlation = problem.get("correlation_id")
    more = f" (correlation id {correlation})" if answer.status_code >= 500 and correlation else ""
    return NodeError(f"the node refused: {detail}{more}", status=answer.status_code, slug=slug)

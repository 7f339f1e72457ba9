"""Uploading a ZIP: streamed, counted, hashed, refused while hostile, and nothing left behind."""

from __future__ import annotations

import base64
import hashlib
import io
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select, text
from starlette.types import Message

from services.app import create_app
from services.audit.models import AuditEvent
from services.datasets.models import SourceDataset
from services.kit import spool
from services.kit.errors import BadRequestError
from services.kit.resources import Resources, open_resources
from services.kit.spool import announced_sha256, clear_spool
from tests.services.conftest import Login
from tests.services.datasets.images import class_files, zip_bytes

URL = "/api/v1/datasets/uploads"
ZIP = {"Content-Type": "application/zip"}


def left_behind(resources: Resources) -> list[str]:
    """Return what an upload that failed must not leave: spool files, objects, rows, holds."""
    with resources.sessions() as session:
        rows = session.scalar(select(func.count()).select_from(SourceDataset))
        holds = session.execute(text("SELECT count(*) FROM object_holds")).scalar()
    folder = resources.settings.spool_dir
    files = [path.name for path in folder.iterdir()] if folder.exists() else []
    stored = [one.sha256 for one in resources.store.list()]
    return [*files, *stored, *[f"{rows} rows"] * bool(rows), *[f"{holds} holds"] * bool(holds)]


def send(
    resources: Resources,
    headers: dict[str, str],
    chunks: Iterator[bytes],
    *,
    query: str = "name=x",
    disconnect: bool = False,
) -> int | None:
    """Send a body in pieces, as a server would hand it to the application; return the status."""
    statuses: list[int] = []

    async def pieces() -> AsyncIterator[Message]:
        for chunk in chunks:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        if not disconnect:
            yield {"type": "http.request", "body": b"", "more_body": False}
        while True:
            yield {"type": "http.disconnect"}

    async def collect(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def serve() -> None:
        source = pieces()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": URL, "raw_path": URL.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        await create_app(resources)(scope, lambda: anext(source), collect)

    anyio.run(serve)
    return statuses[0] if statuses else None


def test_a_zip_becomes_a_dataset_in_the_store(
    client: TestClient, login: Login, resources: Resources
) -> None:
    data = zip_bytes(class_files())
    sha256 = hashlib.sha256(data).hexdigest()
    digest = base64.b64encode(bytes.fromhex(sha256)).decode()
    headers = {**login("researcher"), **ZIP, "Content-Digest": f"sha-256=:{digest}:"}
    query = "?name=covid&title=Covid&where=hospital%3Da&where=view%3DPA"
    answer = client.post(URL + query, content=data, headers=headers)
    assert answer.status_code == 201, answer.text
    made = answer.json()
    assert answer.headers["location"] == f"/api/v1/datasets/{made['id']}"
    assert (made["upload_sha256"], made["upload_size"]) == (sha256, len(data))
    assert (made["name"], made["title"], made["path"]) == ("covid", "Covid", None)
    assert made["rows"] == {"hospital": "a", "view": "PA"}
    assert b"".join(resources.store.read(sha256)) == data
    assert list(resources.settings.spool_dir.iterdir()) == []


def test_the_same_bytes_or_name_again_answer_with_what_is_there(
    client: TestClient, login: Login, resources: Resources
) -> None:
    headers, data = {**login("researcher"), **ZIP}, zip_bytes(class_files())
    first = client.post(f"{URL}?name=covid", content=data, headers=headers).json()
    for query, body in (("name=covid", b"not read"), ("name=other", data)):
        answer = client.post(f"{URL}?{query}", content=body, headers=headers)
        assert (answer.status_code, answer.json()["dataset_id"]) == (409, first["id"])
    assert (
        client.post(f"{URL}?name=part&where=a%3Db", content=data, headers=headers).status_code
        == 201
    )
    assert len(list(resources.store.list())) == 1


def link_entry() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo("COVID/link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return file.getvalue()


def bomb() -> bytes:
    return zip_bytes({"COVID/a.png": bytes(8 << 20)}, method=zipfile.ZIP_DEFLATED)


def forged_count() -> bytes:
    """Return a ZIP whose directory claims more entries than are ever read."""
    return struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65_535, 65_535, 60 << 20, 0, 0)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "no zip": lambda: b"GIF89a",
    "empty": lambda: b"",
    "cut short": lambda: zip_bytes(class_files())[:-30],
    "climbs": lambda: zip_bytes({"../../etc/passwd": b"x"}),
    "absolute": lambda: zip_bytes({"/etc/passwd": b"x"}),
    "drive": lambda: zip_bytes({"C:/x.png": b"x"}),
    "backslash": lambda: zip_bytes({"a\\..\\x.png": b"x"}),
    "link": link_entry,
    "bomb": bomb,
    "forged count": forged_count,
}


def test_hostile_archives_are_refused_before_they_are_stored(
    client: TestClient, login: Login, resources: Resources
) -> None:
    headers = {**login("researcher"), **ZIP}
    for what, made in HOSTILE.items():
        answer = client.post(f"{URL}?name=covid", content=made(), headers=headers)
        assert answer.status_code == 422, what
        assert answer.json()["type"] in {"/problems/unsafe-source", "/problems/bad-source"}, what
        assert left_behind(resources) == [], what
    with resources.sessions() as session:
        refused = session.scalars(
            select(AuditEvent).where(AuditEvent.action == "dataset.upload")
        ).all()
    assert [event.outcome for event in refused] == ["refused"] * len(HOSTILE)


def test_other_bytes_than_announced_are_refused(
    client: TestClient, login: Login, resources: Resources
) -> None:
    digest = base64.b64encode(bytes(32)).decode()
    headers = {**login("researcher"), **ZIP, "Content-Digest": f"sha-256=:{digest}:"}
    answer = client.post(f"{URL}?name=x", content=zip_bytes(class_files()), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (422, "/problems/other-bytes")
    assert left_behind(resources) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        (["sha-512=:AAAA:"], None),
        ([f"sha-512=:AAAA:, sha-256=:{base64.b64encode(b'x' * 32).decode()}:"], b"x" * 32),
        (["sha-512=:AAAA:", f"sha-256=:{base64.b64encode(b'y' * 32).decode()}:"], b"y" * 32),
    ],
)
def test_content_digest_is_read(values: list[str], expected: bytes | None) -> None:
    assert announced_sha256(values) == (expected and expected.hex())


@pytest.mark.parametrize("value", ["sha-256=AAAA", "sha-256=:AAAA:", "sha-256=:****:", "sha-256"])
def test_a_content_digest_that_is_none_is_a_bad_request(value: str) -> None:
    with pytest.raises(BadRequestError, match="Content-Digest"):
        announced_sha256([value])


def test_what_is_too_large_is_refused_early_and_late(resources: Resources, login: Login) -> None:
    limits = resources.settings.limits.model_copy(update={"upload_bytes": 2 << 20})
    settings = resources.settings.model_copy(update={"limits": limits})
    taken = 0

    def chunks(count: int) -> Iterator[bytes]:
        nonlocal taken
        for _ in range(count):
            taken += 1
            yield bytes(1 << 16)

    with open_resources(settings, send=resources.send) as small:
        headers = {**login("researcher"), **ZIP}
        assert send(small, {**headers, "Content-Length": str(3 << 20)}, chunks(48)) == 413
        assert taken == 0
        assert send(small, headers, chunks(200)) == 413
        assert taken == 33
        assert left_behind(small) == []


def test_a_disk_without_room_says_so(resources: Resources, login: Login) -> None:
    limits = resources.settings.limits.model_copy(update={"disk_reserve_bytes": 1 << 60})
    settings = resources.settings.model_copy(update={"limits": limits})
    with open_resources(settings, send=resources.send) as full:
        assert send(full, {**login("researcher"), **ZIP}, iter([b"x"])) == 507
        assert left_behind(full) == []


def test_a_client_that_goes_away_leaves_nothing(resources: Resources, login: Login) -> None:
    seen: list[int] = []

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 16)
        seen.extend(path.stat().st_size for path in resources.settings.spool_dir.iterdir())

    assert send(resources, {**login("researcher"), **ZIP}, chunks(), disconnect=True) == 400
    assert seen == [2 << 20]  # it was on its way
    assert left_behind(resources) == []


def test_a_client_that_falls_silent_is_given_up(
    resources: Resources, login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "IDLE_SECONDS", 0.05)

    class Silent:
        async def stream(self) -> AsyncIterator[bytes]:
            yield b"x"
            await anyio.sleep_forever()

    async def receive() -> None:
        async with spool.spooled(
            Silent(), resources.settings, limit=10, declared=None, sha256=None
        ):
            raise AssertionError

    with pytest.raises(spool.BrokenOffError, match="nothing arrived"):
        anyio.run(receive)
    assert left_behind(resources) == []


def test_others_can_write_to_the_database_while_bytes_stream_in(
    resources: Resources, login: Login
) -> None:
    data = zip_bytes(class_files())

    def chunks() -> Iterator[bytes]:
        yield data[:100]
        with resources.sessions.begin() as session:
            session.execute(text("PRAGMA busy_timeout=0"))
            session.execute(text("UPDATE users SET display_name = 'busy'"))
        yield data[100:]

    assert send(resources, {**login("researcher"), **ZIP}, chunks()) == 201


def test_memory_stays_flat(resources: Resources, login: Login, tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(8):
            archive.writestr(f"COVID/{number}.png", bytes(8 << 20))

    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(1 << 16):
                yield chunk

    headers = {**login("researcher"), **ZIP}
    tracemalloc.start()
    try:
        assert send(resources, headers, chunks()) == 201
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 << 20  # of 64 MiB sent
    assert [one.size for one in resources.store.list()] == [path.stat().st_size]


def test_an_upload_sent_elsewhere_is_not_read_into_memory(
    client: TestClient, login: Login, resources: Resources
) -> None:
    body = bytes(resources.settings.limits.body_bytes + 1)
    headers = {**login("researcher"), **ZIP}
    answer = client.post("/api/v1/datasets", content=body, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")


def test_what_killed_processes_left_is_cleared_at_start_up(
    resources: Resources, login: Login
) -> None:
    folder = resources.settings.spool_dir
    folder.mkdir(parents=True)
    (folder / "body-dead").write_bytes(b"x")
    (folder / "young").write_bytes(b"x")

    def chunks() -> Iterator[bytes]:
        yield b"x"
        assert clear_spool(resources.settings) == 1  # its own file is locked
        assert len(list(folder.glob("body-*"))) == 1

    assert send(resources, {**login("researcher"), **ZIP}, chunks()) == 422
    with TestClient(create_app(resources)):
        assert [path.name for path in folder.iterdir()] == ["young"]


@pytest.mark.parametrize(
    "query",
    ["", "?name=A", "?name=a&where=x", "?name=a&where=x%3D1&where=x%3D2", "?name=a&title=%07"],
)
def test_a_query_that_is_wrong(client: TestClient, login: Login, query: str) -> None:
    answer = client.post(URL + query, content=b"", headers={**login("researcher"), **ZIP})
    assert answer.status_code == 422


def test_who_may_upload(client: TestClient, login: Login) -> None:
    assert client.post(f"{URL}?name=x", content=b"", headers=ZIP).status_code == 401
    for role in ("auditor", "peer"):
        answer = client.post(f"{URL}?name=x", content=b"", headers={**login(role), **ZIP})
        assert answer.status_code == 403

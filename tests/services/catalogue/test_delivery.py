"""Downloads: ETag, one range, conditions, audit; and bytes that were damaged never look whole."""

from __future__ import annotations

import base64
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
from fastapi import Request
from fastapi.testclient import TestClient
from sqlalchemy import select

from services.app import create_app
from services.audit.models import AuditEvent
from services.catalogue import delivery
from services.catalogue.delivery import Blob, Span
from services.catalogue.models import PackageVersion
from services.kit.resources import Resources
from services.kit.storage import CHUNK
from tests.services.catalogue.conftest import Add
from tests.services.conftest import Login
from tests.services.live import serving
from tests.services.packages import package_files, write_package

VERSION = "/api/v1/packages/hospital-a/cxr/versions/1.0.0"
FILE, ARCHIVE = f"{VERSION}/files/distilled.safetensors", f"{VERSION}/archive"
BYTES = package_files("hospital-a")["distilled.safetensors"]
SIZE = len(BYTES)
ETAG = f'"sha256:{sha256(BYTES).hexdigest()}"'
OTHER = '"sha256:' + "0" * 64 + '"'


BLOB = Blob(sha256(BYTES).hexdigest(), SIZE, "application/vnd.safetensors", "distilled.safetensors")


def asking(method: str = "GET", **headers: str) -> Request:
    """Return a request with these headers, as the routes hand it on."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": method, "path": "/", "headers": raw})


@pytest.fixture
def version(add: Add) -> PackageVersion:
    return add(package_files("hospital-a"))


@pytest.mark.usefixtures("version")
def test_every_file_and_the_archive_come_as_they_are(
    client: TestClient, login: Login, tmp_path: Path
) -> None:
    reader = login("researcher")
    for path, data in package_files("hospital-a").items():
        assert client.get(f"{VERSION}/files/{path}", headers=reader).content == data

    archive = write_package(tmp_path, package_files("hospital-a"), "same.zip").read_bytes()
    assert client.get(ARCHIVE, headers=reader).content == archive


@pytest.mark.usefixtures("version")
def test_a_download_says_what_it_is(client: TestClient, login: Login) -> None:
    headers = client.get(FILE, headers=login("researcher")).headers

    digest = base64.b64encode(sha256(BYTES).digest()).decode()
    assert headers["etag"] == ETAG
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-length"] == str(SIZE)
    assert headers["content-type"] == "application/vnd.safetensors"
    assert headers["content-disposition"] == 'attachment; filename="distilled.safetensors"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-digest"] == headers["repr-digest"] == f"sha-256=:{digest}:"
    assert "private" in headers["cache-control"]


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=100-", 100, SIZE),
        ("bytes=-5", SIZE - 5, SIZE),
        (f"bytes=-{SIZE * 2}", 0, SIZE),
        (f"bytes=7-{SIZE * 2}", 7, SIZE),
        ("bytes=0-" + "9" * 5000, 0, SIZE),
        ("Bytes=3-4", 3, 5),
    ],
)
def test_one_range_is_sent(text: str, start: int, end: int) -> None:
    span = delivery.asked_span(asking(range=text), BLOB)
    headers = delivery.describe(BLOB, span)

    assert span == Span(start, end - start, partial=True)
    assert headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert headers["Content-Length"] == str(end - start)
    assert headers["ETag"] == ETAG
    assert "Content-Digest" not in headers


@pytest.mark.parametrize(
    "text",
    [
        f"bytes={SIZE}-",
        f"bytes={SIZE + 5}-{SIZE + 9}",
        "bytes=-0",
        "bytes=" + "9" * 5000 + "-",
        "bytes=0-1,3-4",
        "bytes=" + ",".join(["0-"] * 1000),
        "bytes=0-0,",
    ],
)
def test_ranges_that_cannot_be_sent_and_floods_of_them_cost_nothing(text: str) -> None:
    with pytest.raises(delivery.RangeRefusedError) as refused:
        delivery.asked_span(asking(range=text), BLOB)

    assert refused.value.status == 416
    assert refused.value.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    "text", ["bytes=5-2", "bytes=-", "bytes=a-b", "bytes=1-2x", "items=0-1", "bytes", "bytes=--1"]
)
def test_a_range_that_is_none_is_passed_over(text: str) -> None:
    assert delivery.asked_span(asking(range=text), BLOB) == Span(0, SIZE, partial=False)


def test_a_range_counts_for_get_only() -> None:
    assert not delivery.asked_span(asking("HEAD", range="bytes=0-1"), BLOB).partial


@pytest.mark.parametrize(
    ("condition", "partial"),
    [(ETAG, True), (OTHER, False), (f"W/{ETAG}", False), ("Tue, 01 Dec 2026 00:00:00 GMT", False)],
)
def test_a_range_counts_only_of_the_same_bytes(condition: str, partial: bool) -> None:
    asked = asking(range="bytes=0-9", if_range=condition)

    assert delivery.asked_span(asked, BLOB).partial is partial


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        ({}, False),
        ({"if_none_match": ETAG}, True),
        ({"if_none_match": f"{OTHER}, W/{ETAG}"}, True),
        ({"if_none_match": "*"}, True),
        ({"if_none_match": OTHER}, False),
        ({"if_match": ETAG}, False),
        ({"if_match": "*"}, False),
    ],
)
def test_who_has_the_bytes_is_not_sent_them(headers: dict[str, str], known: bool) -> None:
    assert delivery.is_known(asking(**headers), BLOB) is known


@pytest.mark.parametrize("wanted", [OTHER, f"W/{ETAG}"])
def test_who_wants_other_bytes_gets_none(wanted: str) -> None:
    with pytest.raises(delivery.ConditionFailedError):
        delivery.is_known(asking(if_match=wanted), BLOB)


@pytest.mark.usefixtures("version")
def test_the_routes_answer_as_the_headers_ask(client: TestClient, login: Login) -> None:
    reader = login("researcher")

    def ask(method: str = "GET", **headers: str) -> httpx2.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.request(method, FILE, headers={**reader, **sent})

    part = ask(Range="bytes=100-199")
    assert (part.status_code, part.content) == (206, BYTES[100:200])
    many = ask(Range="bytes=" + ",".join(["0-"] * 1000))
    assert (many.status_code, many.headers["content-range"]) == (416, f"bytes */{SIZE}")
    assert many.headers["content-type"] == "application/problem+json"
    for method in ("GET", "HEAD"):
        same = ask(method, If_None_Match=ETAG)
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", ETAG)
        assert ask(method, If_Match=OTHER).status_code == 412


@pytest.mark.usefixtures("version")
def test_head_tells_what_get_would_and_sends_nothing(client: TestClient, login: Login) -> None:
    reader = login("researcher")
    for url in (FILE, ARCHIVE):
        got = client.get(url, headers=reader).headers
        told = client.head(url, headers={**reader, "Range": "bytes=0-1"})

        assert (told.status_code, told.content) == (200, b"")
        for name in ("etag", "content-length", "content-type"):
            assert told.headers[name] == got[name]


@pytest.mark.usefixtures("version")
def test_every_download_is_audited_and_a_look_is_not(
    client: TestClient, login: Login, resources: Resources
) -> None:
    reader = login("researcher")
    client.head(FILE, headers=reader)
    client.get(FILE, headers={**reader, "If-None-Match": ETAG})
    client.get(FILE, headers={**reader, "Range": "bytes=10-19"})

    with resources.reading() as session:
        (event,) = session.scalars(
            select(AuditEvent).where(AuditEvent.action == "package.download")
        )
    assert (event.subject, event.actor_name) == ("hospital-a/cxr@1.0.0", "researcher")
    assert event.detail["path"] == "distilled.safetensors"
    assert (event.detail["start"], event.detail["length"]) == (10, 10)


@pytest.mark.usefixtures("version")
def test_a_path_is_only_ever_a_name_in_the_catalogue(client: TestClient, login: Login) -> None:
    reader = login("researcher")
    for path in ("nothing.json", "../secret", "..%2f..%2fnode.db", "previews", "previews/",
                 "/etc/passwd", "%00", "x" * 200):  # fmt: skip
        assert client.get(f"{VERSION}/files/{path}", headers=reader).status_code == 404, path


@pytest.mark.usefixtures("version")
def test_drafts_are_hidden_from_peers_and_everything_from_strangers(
    client: TestClient, login: Login
) -> None:
    peer = login("peer")
    for url in (FILE, ARCHIVE):
        for method in ("GET", "HEAD"):
            assert client.request(method, url, headers=peer).status_code == 404
            assert client.request(method, url).status_code == 401


@pytest.mark.usefixtures("version")
def test_a_yanked_version_is_gone_for_peers_and_warns_people_here(
    client: TestClient, login: Login, resources: Resources
) -> None:
    client.post(f"{VERSION}/release", headers=login("steward"))
    assert client.get(FILE, headers=login("peer")).content == BYTES
    client.post(f"{VERSION}/yank", headers=login("steward"), json={"reason": "lapsed consent"})

    refused = client.get(FILE, headers={**login("peer"), "Range": "bytes=5-"})
    here = client.get(FILE, headers=login("researcher"))

    assert refused.status_code == 410
    assert "lapsed consent" in refused.json()["detail"]
    assert client.head(ARCHIVE, headers=login("peer")).status_code == 410
    assert client.get(VERSION, headers=login("peer")).json()["yank"]["reason"] == "lapsed consent"
    assert here.content == BYTES
    assert "taken back" in here.headers["warning"]
    with resources.reading() as session:
        outcomes = session.scalars(
            select(AuditEvent.outcome)
            .where(AuditEvent.action == "package.download")
            .order_by(AuditEvent.seq)
        )
        assert list(outcomes) == ["done", "refused", "done"]


@pytest.mark.usefixtures("version")
def test_an_object_that_is_missing_is_an_error_and_no_empty_file(
    client: TestClient, login: Login, resources: Resources
) -> None:
    resources.store.delete(sha256(BYTES).hexdigest())

    answer = client.get(FILE, headers=login("researcher"))

    assert answer.status_code == 500
    assert answer.json()["type"] == "/problems/object-missing"


def test_damaged_bytes_never_arrive_whole(
    resources: Resources, login: Login, version: PackageVersion
) -> None:
    """The archive is made larger than one piece, so that the answer has begun when the damage is found."""
    data = bytearray(b"x" * (3 * CHUNK))
    digest = resources.store.put(bytes(data))
    data[CHUNK] ^= 1
    (resources.settings.data_dir / "objects" / digest[:2] / digest[2:4] / digest).write_bytes(data)
    with resources.transaction() as session:
        row = session.get_one(PackageVersion, version.id)
        row.archive_sha256, row.archive_size = digest, len(data)

    received: list[bytes] = []
    with (
        serving(create_app(resources)) as url,
        httpx2.Client(base_url=url, trust_env=False) as http,
        http.stream("GET", ARCHIVE, headers=login("researcher")) as answer,
    ):
        assert answer.headers["content-length"] == str(len(data))
        with pytest.raises(httpx2.RemoteProtocolError):
            received.extend(answer.iter_raw())

    assert 0 < len(b"".join(received)) < len(data)

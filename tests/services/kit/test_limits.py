from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from services.kit import problems
from services.kit.limits import BodyLimitMiddleware, expect_body
from services.settings import LimitSettings

LIMITS = LimitSettings(body_bytes=4096, image_bytes=65536)


@pytest.fixture
def api() -> Iterator[TestClient]:
    app = FastAPI()
    problems.register(app)
    app.add_middleware(BodyLimitMiddleware, limits=LIMITS)

    @app.post("/json")
    def _json(body: dict[str, str]) -> int:
        return len(body)

    @app.post("/raw")
    async def _raw(request: Request) -> int:
        return len(await request.body())

    @app.post("/upload")
    async def _upload(request: Request) -> int:
        expect_body(request, 100_000, "an upload")
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return size

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def _chunks(count: int, size: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b" " * size


def test_a_body_within_the_limit_passes(api: TestClient) -> None:
    assert api.post("/json", json={"a": "b"}).json() == 1


def test_a_body_declared_too_large_is_refused_unread(api: TestClient) -> None:
    answer = api.post("/json", content=b"{" + b" " * 5000 + b"}")
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")
    assert "4,096 bytes" in answer.json()["detail"]


@pytest.mark.parametrize("route", ["/json", "/raw"])
def test_a_body_that_declares_no_length_is_counted(api: TestClient, route: str) -> None:
    answer = api.post(route, content=_chunks(10, 1000))
    assert (answer.status_code, answer.json()["type"]) == (413, "/problems/too-large")


@pytest.mark.parametrize("length", ["-1", "1e3", "abc", "9" * 30])
def test_a_length_that_is_none_is_refused(api: TestClient, length: str) -> None:
    answer = api.post("/raw", content=b"x", headers={"Content-Length": length})
    assert answer.status_code == 413


def test_an_image_may_be_larger_than_json_but_not_without_end(api: TestClient) -> None:
    image = {"Content-Type": "image/png; charset=x"}
    assert api.post("/raw", content=bytes(60_000), headers=image).json() == 60_000
    assert api.post("/raw", content=bytes(70_000), headers=image).status_code == 413
    assert api.post("/raw", content=_chunks(70, 1000), headers=image).status_code == 413


def test_a_route_that_expects_an_upload_takes_one_up_to_its_limit(api: TestClient) -> None:
    archive = {"Content-Type": "application/zip"}
    assert api.post("/upload", content=bytes(90_000), headers=archive).json() == 90_000
    assert api.post("/upload", content=_chunks(90, 1000), headers=archive).json() == 90_000
    for answer in (
        api.post("/upload", content=bytes(100_001), headers=archive),
        api.post("/upload", content=_chunks(101, 1000), headers=archive),
    ):
        assert answer.status_code == 413
        assert "an upload may have 100,000 bytes" in answer.json()["detail"]


def test_an_upload_to_a_route_that_expects_none_does_not_fill_the_memory(api: TestClient) -> None:
    archive = {"Content-Type": "application/zip"}
    assert api.post("/raw", content=_chunks(10, 1000), headers=archive).status_code == 413
    assert api.post("/raw", content=bytes(10_000), headers=archive).status_code == 413

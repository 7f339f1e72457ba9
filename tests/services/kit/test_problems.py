from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError, OperationalError

from ppdd_core import errors as core
from services.kit import problems
from services.kit.errors import (
    CORE,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    ServiceError,
    TooLargeError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
    UnprocessableError,
)
from services.kit.problems import CorrelationMiddleware
from services.kit.storage import StoreFullError

DETAIL = "what is wrong, and what to do"


class _Body(BaseModel):
    count: int


@pytest.fixture
def raising() -> list[Exception]:
    """What the route raises next."""
    return []


@pytest.fixture
def api(raising: list[Exception]) -> Iterator[TestClient]:
    app = FastAPI()
    problems.register(app)
    app.add_middleware(CorrelationMiddleware)

    @app.get("/raise")
    def _raise() -> None:
        raise raising.pop()

    @app.post("/body")
    def _body(body: _Body) -> int:
        return body.count

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (BadRequestError(DETAIL), 400, "bad-request"),
        (UnauthorizedError(DETAIL), 401, "unauthorized"),
        (ForbiddenError(DETAIL), 403, "forbidden"),
        (NotFoundError(DETAIL), 404, "not-found"),
        (ConflictError(DETAIL), 409, "conflict"),
        (TooLargeError(DETAIL), 413, "too-large"),
        (UnprocessableError(DETAIL), 422, "unprocessable"),
        (TooManyError(DETAIL, retry_after=7), 429, "too-many-requests"),
        (UnavailableError(DETAIL), 503, "unavailable"),
        (StoreFullError(DETAIL), 507, "store-full"),
        (core.BadConfigError(DETAIL), 422, "bad-config"),
        (core.UnsafeSourceError(DETAIL), 422, "unsafe-source"),
        (core.BadImageError(DETAIL), 422, "bad-source"),
        (core.SignatureError(DETAIL), 422, "bad-package"),
        (core.TrainingError(DETAIL), 422, "refused"),
    ],
)
def test_a_refusal_is_a_problem_document(
    api: TestClient, raising: list[Exception], error: Exception, status: int, slug: str
) -> None:
    raising.append(error)
    answer = api.get("/raise")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["type"] == f"/problems/{slug}"
    assert (told["status"], told["detail"]) == (status, DETAIL)
    assert told["title"]
    assert told["correlation_id"] == answer.headers["x-correlation-id"]


def test_headers_and_facts_of_a_refusal_are_given(
    api: TestClient, raising: list[Exception]
) -> None:
    raising.append(TooManyError(DETAIL, retry_after=7, tries=3))
    answer = api.get("/raise")
    assert (answer.headers["retry-after"], answer.json()["tries"]) == ("7", 3)
    raising.append(UnauthorizedError())
    assert api.get("/raise").headers["www-authenticate"] == 'Bearer realm="ppdd"'


def test_every_fault_of_a_manifest_is_told(api: TestClient, raising: list[Exception]) -> None:
    raising.append(core.BadManifestError(["one", "two"]))
    assert api.get("/raise").json()["problems"] == ["one", "two"]


def test_a_body_of_another_shape_says_where_and_repeats_no_value(api: TestClient) -> None:
    answer = api.post("/body", json={"count": "geheim"})
    told = answer.json()
    assert (answer.status_code, told["type"]) == (422, "/problems/invalid-request")
    assert told["errors"][0]["where"] == "body/count"
    assert "integer" in told["detail"]
    assert "geheim" not in answer.text


def test_no_such_route_and_no_such_method_are_problems(api: TestClient) -> None:
    for answer, slug in (
        (api.get("/nowhere"), "not-found"),
        (api.delete("/raise"), "method-not-allowed"),
    ):
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["type"] == f"/problems/{slug}"


def test_a_bug_tells_nothing_but_its_correlation_id(
    api: TestClient, raising: list[Exception]
) -> None:
    raising.append(RuntimeError("a secret in a message"))
    answer = api.get("/raise")
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
    assert "secret" not in answer.text
    assert len(answer.json()["correlation_id"]) == 16


def test_a_database_that_is_away_is_not_a_bug(api: TestClient, raising: list[Exception]) -> None:
    raising.append(OperationalError("SELECT a_secret", {}, Exception("gone")))
    answer = api.get("/raise")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/database-unavailable")
    assert answer.headers["retry-after"] == "5"
    raising.append(IntegrityError("INSERT a_secret", {}, Exception("twice")))
    other = api.get("/raise")
    assert (other.status_code, other.json()["type"]) == (500, "/problems/internal")
    assert "a_secret" not in answer.text + other.text


def test_correlation_ids_are_the_nodes_own(api: TestClient) -> None:
    given = {"X-Correlation-Id": "0123456789abcdef", "X-Request-Id": "mine"}
    ids = [api.get("/nowhere", headers=given).json()["correlation_id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert "0123456789abcdef" not in ids


def test_slugs_are_used_once() -> None:
    def all_of(kind: type[ServiceError]) -> Iterator[type[ServiceError]]:
        for child in kind.__subclasses__():
            yield child
            yield from all_of(child)

    slugs = [kind.slug for kind in all_of(ServiceError) if "slug" in vars(kind)]
    slugs += [row[2] for row in CORE]
    assert sorted(slugs) == sorted(set(slugs))

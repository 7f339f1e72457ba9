"""Routes under more callers than there are threads and connections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi import APIRouter, FastAPI, Response
from fastapi.testclient import TestClient
from pydantic import BaseModel
from sqlalchemy import text

from services.app import create_app
from services.kit import problems
from services.kit.http import FeatureRouter, SessionDep, ThreadRoute
from services.kit.resources import Resources, open_resources
from services.settings import load_settings

CALLERS = 100  # more than FastAPI's 40 threads and the pool's 2 connections


class Answer(BaseModel):
    one: int


@pytest.fixture
def crowded(tmp_path: Path, postgres_url: str) -> Iterator[Resources]:
    """A node with two connections, which are waited for 5 seconds."""
    database = {"url": postgres_url, "pool_size": 1}
    with open_resources(
        load_settings({}, data_dir=tmp_path, database=database), send=print
    ) as made:
        made.engine.pool._timeout = 5  # type: ignore[attr-defined]
        yield made


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_callers_do_not_lock_each_other_out(crowded: Resources, method: str) -> None:
    router = APIRouter(route_class=ThreadRoute)

    @router.api_route("/", methods=[method])
    def ask(session: SessionDep) -> Answer:
        return Answer(one=session.execute(text("SELECT 1 FROM pg_sleep(0.005)")).scalar_one())

    app = FastAPI()
    app.state.resources = crowded
    app.include_router(router)
    with (
        TestClient(app, raise_server_exceptions=False) as client,
        ThreadPoolExecutor(CALLERS) as callers,
    ):
        answers = list(
            callers.map(lambda _: client.request(method, "/").status_code, range(2 * CALLERS))
        )
    assert set(answers) == {200}


def test_waiting_too_long_for_a_connection_is_no_bug(crowded: Resources) -> None:
    crowded.engine.pool._timeout = 0.05  # type: ignore[attr-defined]
    app = FastAPI()
    app.state.resources = crowded
    problems.register(app)

    @app.get("/")
    def ask(session: SessionDep) -> None:
        session.execute(text("SELECT 1"))

    with crowded.engine.connect(), crowded.engine.connect():
        answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/database-unavailable")


def _wants_a_session(session: SessionDep) -> Response:
    raise NotImplementedError


def _wants_a_value(needed: str) -> Response:
    raise NotImplementedError


@pytest.mark.parametrize("function", [_wants_a_session, _wants_a_value])
def test_a_list_takes_only_what_its_route_gives_it(function: Callable[..., Response]) -> None:
    with pytest.raises(TypeError, match="query parameters with defaults"):
        FeatureRouter(prefix="/things", tags=["things"]).list()(function)


def test_every_route_of_the_node_is_such_a_route(resources: Resources) -> None:
    routes, seen = list(create_app(resources).router.routes), 0
    while routes:
        route = routes.pop()
        inner = getattr(route, "original_router", None)
        if inner is not None:
            routes += inner.routes
        elif getattr(
            route, "tags", None
        ):  # what FastAPI adds by itself, such as the description, has none
            seen += 1
            assert isinstance(route, ThreadRoute), route
    assert seen > 50

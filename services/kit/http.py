"""What routes are given: a session, the store, the node's resources."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session
from starlette.routing import Match
from starlette.types import Scope

from services.kit.db import READONLY
from services.kit.resources import Resources
from services.kit.storage import ObjectStore
from services.settings import Settings

# Threads take turns at Python anyway. With 40 of them each page takes longer, as do the queries of 40 connections.
PAGES_AT_ONCE = 8
_pages: RunVar[CapacityLimiter] = RunVar("pages")
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def operation_id(route: object) -> str:
    """Return an operation's id: its router's tag and its function's name, as the permission table has it.

    Made from the route alone, because a route that is served through an included router does not know its full id.
    """
    tags = getattr(route, "tags", None) or ["untagged"]
    return f"{tags[0]}_{getattr(route, 'name', '')}"


class ThreadRoute(APIRoute):
    """A route whose plain function runs in a thread and hands its connection back before it leaves it.

    Every router has it as `route_class`. FastAPI's own route validates the answer in a second thread, the session still
    open: with many callers, all threads then wait for connections whose holders wait for a thread.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **given: Any) -> None:
        super().__init__(path, _threaded(endpoint), **given)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers requests. The app's guard comes before a body that FastAPI reads.

        As a dependency alone it would come after, and tell strangers what is wrong with their JSON.
        """
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def guarded(request: Request) -> Response:
            await run_in_threadpool(request.app.state.guard, request)
            return await handle(request)

        return guarded


class ListRoute(ThreadRoute):
    """The route of a list that programs read page by page: one thread does all of it, from the guard to the JSON.

    FastAPI takes longer over a page of 50 rows than the database does: it solves dependencies, and validates what the
    database has just said (docs/decisions/0017). So the function takes the request and query parameters, all of which
    have defaults, and returns the answer. Its description is made from the same signature, and its `response_model`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Response], **given: Any) -> None:
        super().__init__(path, endpoint, **given)
        self._answer = endpoint
        self._takes = {field.alias: field for field in self.dependant.query_params}
        required = any(field.field_info.is_required() for field in self._takes.values())
        other = (
            self.dependant.path_params, self.dependant.header_params, self.dependant.cookie_params,
            self.dependant.body_params, self.dependant.dependencies,
        )  # fmt: skip
        if required or any(other):
            raise TypeError(f"{path}: a list takes the request and query parameters with defaults")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers requests."""

        async def handle(request: Request) -> Response:
            return await to_thread.run_sync(self._page, request, limiter=_few_at_once())

        return handle

    def _page(self, request: Request) -> Response:
        request.app.state.guard(request)
        given = request.query_params
        known = [self._takes[name] for name in given if name in self._takes]
        values, errors = request_params_to_args(known, given)
        if errors:
            raise RequestValidationError(errors)
        return self._answer(request, **values)


def _few_at_once() -> CapacityLimiter:
    """Return what lets few pages be made at once, of each event loop; the others wait in turn."""
    try:
        return _pages.get()
    except LookupError:
        limiter = CapacityLimiter(PAGES_AT_ONCE)
        _pages.set(limiter)
        return limiter


class FeatureRouter(APIRouter):
    """The router of a feature's API: its routes are `ThreadRoute`s, and are tried for paths that can be theirs only."""

    def __init__(self, **given: Any) -> None:
        super().__init__(route_class=ThreadRoute, **given)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Return which of its routes the request is for. Trying those of a dozen other features takes long."""
        if self.prefix not in scope["path"]:
            return Match.NONE, {}
        return super().matches(scope)

    def list(self, **given: Any) -> Callable[[Callable[..., Response]], Callable[..., Response]]:
        """Add the decorated function as the feature's list: GET of the router's own path, as a `ListRoute`."""

        def add(endpoint: Callable[..., Response]) -> Callable[..., Response]:
            self.add_api_route(
                "", endpoint, methods=["GET"], name="list", route_class_override=ListRoute, **given
            )
            return endpoint

        return add


def _threaded(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(endpoint):
        return endpoint

    def call(values: dict[str, Any]) -> Any:
        try:
            return endpoint(**values)
        finally:
            for value in values.values():
                if isinstance(value, Session) and value.info.get(READONLY):
                    value.close()

    @functools.wraps(endpoint)
    async def run(**values: Any) -> Any:
        return await run_in_threadpool(call, values)

    return run


def resources_of(request: Request) -> Resources:
    """Return what the process holds."""
    resources: Resources = request.app.state.resources
    return resources


async def request_session(request: Request) -> AsyncIterator[Session]:
    """Yield the request's one session: reading for safe methods, else one transaction, committed before the answer.

    What `enqueue` noted is rung for after the commit.
    """
    resources = resources_of(request)
    if request.method in SAFE:
        with (
            resources.readers() as session
        ):  # connected when first asked; closing it waits for nobody
            yield session
        return
    async with contextmanager_in_threadpool(resources.transaction()) as session:
        yield session


# The following are `async` because that is without a thread: handing one over costs more than what they do.


async def _resources(request: Request) -> Resources:
    return resources_of(request)


async def _settings(request: Request) -> Settings:
    return resources_of(request).settings


async def _store(request: Request) -> ObjectStore:
    return resources_of(request).store


ResourcesDep = Annotated[Resources, Depends(_resources)]
# scope="function": the commit comes before the answer is sent, so that a 201 is never a lie.
SessionDep = Annotated[Session, Depends(request_session, scope="function")]
SettingsDep = Annotated[Settings, Depends(_settings)]
StoreDep = Annotated[ObjectStore, Depends(_store)]

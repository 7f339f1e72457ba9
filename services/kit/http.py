"""What routes are given: a session, the store, the node's resources."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.concurrency import contextmanager_in_threadpool, run_in_threadpool
from fastapi.routing import APIRoute
from sqlalchemy.orm import Session

from services.kit.db import READONLY
from services.kit.resources import Resources
from services.kit.storage import ObjectStore
from services.settings import Settings

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

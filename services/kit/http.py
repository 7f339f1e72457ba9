"""What routes are given: a session, the store, the node's resources."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from fastapi.concurrency import contextmanager_in_threadpool
from sqlalchemy.orm import Session

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

"""Garbage collection: objects of the store that nothing refers to are deleted, once they are old enough.

What refers to an object is read off the tables themselves: every column named `sha256` or `…_sha256` does, unless it
says `info={"object": False}`. A reference that somebody forgets to declare therefore keeps objects; it loses none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice

from sqlalchemy import Column, select
from sqlalchemy.orm import Session

from services.audit import service as audit
from services.audit.actor import SYSTEM, Actor
from services.kit.db import now
from services.kit.holds import close_to_new_holds, drop_expired, held
from services.kit.resources import Resources
from services.kit.storage import Stored, StoreError
from services.system.tables import METADATA

GRACE = timedelta(hours=24)  # younger objects stay, whoever stored them
BATCH = 100  # objects deleted while nobody can take a hold


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection found, and what it deleted (or would have)."""

    seen: int = 0
    objects: int = 0
    bytes: int = 0


def collect(
    resources: Resources,
    *,
    grace: timedelta = GRACE,
    dry_run: bool = False,
    actor: Actor = SYSTEM,
) -> Collected:
    """Delete objects older than `grace` that no row refers to and nobody holds; return what was deleted.

    Safe beside publishers, jobs and other collections. StoreError where the store fails: what was deleted until then is
    in the audit log, and the next collection goes on. With `dry_run` nothing is changed.
    """
    if not dry_run:
        with resources.transaction() as session:
            drop_expired(session)
        resources.store.drop_unfinished(now() - max(grace, GRACE))
    before = now() - grace
    seen = objects = size = 0
    for batch in _batches(resources.store.list()):
        seen += len(batch)
        with resources.reading() as session:
            free = _free(session, [one for one in batch if one.written_at <= before])
        if free and not dry_run:
            free = _delete(resources, free, actor)
        objects, size = objects + len(free), size + sum(one.size for one in free)
    return Collected(seen, objects, size)


def referring_columns() -> list[Column[str]]:
    """Return the columns whose values are digests of objects in the store."""
    return [
        column
        for table in METADATA.sorted_tables
        for column in table.columns
        if column.info.get("object", column.name.endswith("sha256"))
    ]


def _batches(found: Iterator[Stored]) -> Iterator[list[Stored]]:
    while batch := list(islice(found, BATCH)):
        yield batch


def _free(session: Session, objects: Collection[Stored]) -> list[Stored]:
    """Return the objects that nobody counts on. Holds are looked at first: they are given up with the rows' commit."""
    if not objects:
        return []
    digests = {one.sha256 for one in objects}
    used = held(session, digests)
    for column in referring_columns():
        used |= set(session.scalars(select(column).where(column.in_(digests))))
    return [one for one in objects if one.sha256 not in used]


def _delete(resources: Resources, objects: Collection[Stored], actor: Actor) -> list[Stored]:
    """Delete those that are still free while nobody can take a hold; return them."""
    deleted, failure = [], None
    with resources.transaction() as session:
        close_to_new_holds(session)
        for one in _free(session, objects):
            try:
                resources.store.delete(one.sha256)
            except StoreError as err:
                failure = err
                break
            deleted.append(one)
        if deleted:
            detail = {"objects": len(deleted), "bytes": sum(one.size for one in deleted)}
            audit.record(session, actor, "store.collect", detail=detail)
    if failure is not None:
        raise failure
    return deleted

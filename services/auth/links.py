"""One-time links: setting up the node, and choosing a password. The token in a link is stored as its digest."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from services.auth.models import OneTimeLink
from services.kit.errors import ServiceError
from services.kit.secrets import digest, new_token

LASTS = timedelta(hours=24)

Purpose = Literal["setup", "password"]
PAGES: dict[Purpose, str] = {"setup": "setup", "password": "password"}


class LinkGoneError(ServiceError):
    """The link was used, replaced, or has expired."""

    status, slug, title = 410, "link-gone", "This link does not work any more"


def create_link(
    session: Session, purpose: Purpose, user_id: UUID | None, public_url: str, at: datetime
) -> str:
    """Return a new link; older ones for the same stop working. The token is in the fragment, which no server sees."""
    session.execute(delete(OneTimeLink).where(*_same(purpose, user_id)))
    token = new_token()
    session.add(
        OneTimeLink(purpose=purpose, user_id=user_id, sha256=digest(token), expires_at=at + LASTS)
    )
    session.flush()
    return f"{public_url.rstrip('/')}/{PAGES[purpose]}#{token}"


def open_link(session: Session, purpose: Purpose, token: str, at: datetime) -> OneTimeLink:
    """Return the link that `token` belongs to, without using it up; LinkGoneError if it does not work."""
    link = session.scalar(
        select(OneTimeLink).where(OneTimeLink.sha256 == digest(token), *_works(purpose, at))
    )
    if link is None:
        raise LinkGoneError("this link was used, replaced or has expired; ask for a new one")
    return link


def use_link(session: Session, link: OneTimeLink, purpose: Purpose, at: datetime) -> None:
    """Use the link up; LinkGoneError if somebody else was faster."""
    done = session.execute(
        update(OneTimeLink)
        .where(OneTimeLink.id == link.id, *_works(purpose, at))
        .values(used_at=at)
        .execution_options(synchronize_session=False)
    )
    if done.rowcount != 1:  # type: ignore[attr-defined]
        raise LinkGoneError("this link was used a moment ago; ask for a new one")


def drop_links(session: Session, user_id: UUID) -> None:
    """Let no link of a user work any more."""
    session.execute(delete(OneTimeLink).where(OneTimeLink.user_id == user_id))


def _same(purpose: Purpose, user_id: UUID | None) -> tuple[ColumnElement[bool], ...]:
    owner = OneTimeLink.user_id
    return OneTimeLink.purpose == purpose, owner.is_(None) if user_id is None else owner == user_id


def _works(purpose: Purpose, at: datetime) -> tuple[ColumnElement[bool], ...]:
    return (
        OneTimeLink.purpose == purpose,
        OneTimeLink.used_at.is_(None),
        OneTimeLink.expires_at > at,
    )

"""Rules about people and credentials: making users, issuing tokens, and knowing who is asking."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from services.audit import service as audit
from services.audit.actor import Actor
from services.auth.models import ApiToken, LoginSession, User
from services.auth.permissions import Role, Scope, role_scopes
from services.auth.principal import Principal
from services.kit.db import now
from services.kit.problems import UnauthorizedError, UnprocessableError
from services.kit.secrets import digest, new_token
from services.settings import SessionSettings

SEEN_EVERY = timedelta(minutes=1)  # how exactly the last use of a credential is known


def create_user(
    session: Session, actor: Actor, *, username: str, display_name: str, role: Role
) -> User:
    """Add a user without a password; they choose it through a one-time link."""
    user = User(username=username.lower(), display_name=display_name, role=role.value)
    session.add(user)
    session.flush()
    audit.record(session, actor, "user.create", user.username, detail={"role": role.value})
    return user


def issue_token(
    session: Session, actor: Actor, user: User, *, name: str, scopes: frozenset[Scope], days: int
) -> tuple[ApiToken, str]:
    """Return a new token's row and its text, which is shown this once; scopes beyond the user's role are refused."""
    beyond = scopes - role_scopes(Role(user.role))
    if beyond or not scopes:
        allowed = ", ".join(sorted(role_scopes(Role(user.role))))
        raise UnprocessableError(
            f"a token of the role {user.role} may have these scopes: {allowed}"
        )
    text = new_token()
    token = ApiToken(
        user_id=user.id,
        name=name,
        prefix=text[:12],
        sha256=digest(text),
        scopes=sorted(scopes),
        expires_at=now() + timedelta(days=days),
    )
    session.add(token)
    session.flush()
    audit.record(
        session,
        actor,
        "token.create",
        str(token.id),
        detail={"user": user.username, "scopes": sorted(scopes)},
    )
    return token, text


def by_token(session: Session, text: str, at: datetime) -> Principal:
    """Return who holds a token; UnauthorizedError for one that is unknown, expired, revoked or of a disabled user."""
    token = session.scalar(
        select(ApiToken).where(ApiToken.sha256 == digest(text)).options(joinedload(ApiToken.user))
    )
    if token is None or token.revoked_at or token.expires_at <= at or token.user.disabled_at:
        raise UnauthorizedError("the token is unknown, expired or revoked; make a new one")
    return Principal(
        user_id=token.user_id,
        username=token.user.username,
        role=Role(token.user.role),
        via="token",
        credential_id=token.id,
        scopes=frozenset(Scope(scope) for scope in token.scopes),
    )


def by_cookie(
    session: Session, text: str, at: datetime, settings: SessionSettings
) -> tuple[Principal, str]:
    """Return who is logged in, and what their unsafe requests must send; UnauthorizedError for an ended session."""
    login = session.scalar(
        select(LoginSession)
        .where(LoginSession.sha256 == digest(text))
        .options(joinedload(LoginSession.user))
    )
    idle = timedelta(minutes=settings.idle_minutes)
    if (
        login is None
        or login.expires_at <= at
        or login.seen_at + idle <= at
        or login.user.disabled_at
    ):
        raise UnauthorizedError("the session has ended; log in again")
    principal = Principal(
        user_id=login.user_id,
        username=login.user.username,
        role=Role(login.user.role),
        via="session",
        credential_id=login.id,
    )
    return principal, login.csrf


def note_use(session: Session, credential_id: UUID, at: datetime) -> None:
    """Remember that a credential was used, to the minute."""
    for row in (session.get(ApiToken, credential_id), session.get(LoginSession, credential_id)):
        if isinstance(row, ApiToken):
            row.last_used_at = at
        elif isinstance(row, LoginSession):
            row.seen_at = at

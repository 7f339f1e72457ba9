"""Rules about people and credentials: users, tokens, sessions, second factors; and knowing who is asking.

What needs a password to be looked at is in `login`, because it must not happen inside a transaction.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from sqlalchemy import Connection, bindparam, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, joinedload

from services.audit import service as audit
from services.audit.actor import SYSTEM, Actor
from services.auth import links, totp
from services.auth.models import ApiToken, LoginSession, RecoveryCode, User
from services.auth.permissions import Role, Scope, role_scopes
from services.auth.principal import Principal
from services.kit.db import new_id, now
from services.kit.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    UnauthorizedError,
    UnprocessableError,
)
from services.kit.keyset import page_rows
from services.kit.secrets import TOKEN_PREFIX, Vault, digest, new_token
from services.kit.text import clean
from services.settings import SessionSettings, Settings

SEEN_EVERY = timedelta(minutes=1)  # how exactly the last use of a credential is known
MOST_TOKENS = 100  # that one user may have at a time
_TOKEN = re.compile(rf"{TOKEN_PREFIX}[A-Za-z0-9_-]{{43}}")
_COOKIE = re.compile(r"[A-Za-z0-9_-]{43}")


class UsernameTakenError(ConflictError):
    """There is a user of that name."""

    slug, title = "username-taken", "This user name is taken"


class LastAdminError(ConflictError):
    """Without this admin nobody could administer the node any more."""

    slug, title = "last-admin", "The last admin stays one"


class TooManyTokensError(ConflictError):
    """The user has as many tokens as one may have."""

    slug, title = "too-many-tokens", "Too many tokens"


class TotpOnError(ConflictError):
    """One-time passwords are asked for already."""

    slug, title = "totp-on", "One-time passwords are on already"


class WrongCodeError(UnprocessableError):
    """The one-time password does not fit."""

    slug, title = "wrong-code", "The one-time password does not fit"


# Columns, not objects, made once, and asked of the connection: every request of a program asks this.
_BY_TOKEN = (
    select(
        ApiToken.id, ApiToken.user_id, ApiToken.scopes, ApiToken.expires_at, ApiToken.revoked_at,
        ApiToken.last_used_at, User.username, User.role, User.disabled_at,
    )
    .join(User, User.id == ApiToken.user_id)
    .where(ApiToken.sha256 == bindparam("sha256"))
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session: the cookie's text, which is nowhere else, and what the client is told."""

    cookie: str
    login: LoginSession
    user: User


# ------------------------------------------------------------------------------------------ who is asking


def by_token(connection: Connection, text: str, at: datetime) -> Principal:
    """Return who holds a token; UnauthorizedError for one that is unknown, expired, revoked or of a disabled user."""
    token = None
    if _TOKEN.fullmatch(text):
        token = connection.execute(_BY_TOKEN, {"sha256": digest(text)}).one_or_none()
    if token is None or token.revoked_at or token.expires_at <= at or token.disabled_at:
        raise UnauthorizedError("the token is unknown, expired or revoked; make a new one")
    return Principal(
        user_id=token.user_id,
        username=token.username,
        role=Role(token.role),
        via="token",
        credential_id=token.id,
        scopes=frozenset(Scope(scope) for scope in token.scopes),
        used_at=token.last_used_at,
    )


def by_cookie(
    session: Session, text: str, at: datetime, settings: SessionSettings
) -> tuple[Principal, str]:
    """Return who is logged in, and what their unsafe requests must send; UnauthorizedError for an ended session."""
    login = None
    if _COOKIE.fullmatch(text):
        login = session.scalar(
            select(LoginSession)
            .where(LoginSession.sha256 == digest(text))
            .options(joinedload(LoginSession.user))
        )
    if (
        login is None
        or login.expires_at <= at
        or login.seen_at + timedelta(minutes=settings.idle_minutes) <= at
        or login.user.disabled_at
    ):
        raise UnauthorizedError("the session has ended; log in again")
    principal = Principal(
        user_id=login.user_id,
        username=login.user.username,
        role=Role(login.user.role),
        via="session",
        credential_id=login.id,
        used_at=login.seen_at,
    )
    return principal, login.csrf


def use_is_due(principal: Principal, at: datetime) -> bool:
    """Return whether the last use that is known of the caller's credential is a minute old."""
    last = principal.used_at
    return last is None or last + SEEN_EVERY <= at


def note_use(session: Session, credential_id: UUID, at: datetime) -> None:
    """Remember that a credential was used, to the minute."""
    before = at - SEEN_EVERY
    used, seen = ApiToken.last_used_at, LoginSession.seen_at
    session.execute(
        update(ApiToken)
        .where(ApiToken.id == credential_id, or_(used.is_(None), used <= before))
        .values(last_used_at=at)
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(LoginSession)
        .where(LoginSession.id == credential_id, seen <= before)
        .values(seen_at=at)
        .execution_options(synchronize_session=False)
    )


# ------------------------------------------------------------------------------------------ users


def create_user(
    session: Session, actor: Actor, *, username: str, display_name: str, role: Role
) -> User:
    """Add a user without a password; they choose it through a one-time link. UsernameTakenError for a known name."""
    user = User(username=username.lower(), display_name=clean(display_name, 200), role=role.value)
    try:
        with session.begin_nested():
            session.add(user)
    except IntegrityError:
        raise UsernameTakenError(f"there is a user {user.username} already") from None
    audit.record(session, actor, "user.create", user.username, detail={"role": role.value})
    return user


def get_user(session: Session, user_id: UUID) -> User:
    """Return the user; NotFoundError if there is none."""
    user = session.get(User, user_id)
    if user is None:
        raise NotFoundError(f"there is no user {user_id}")
    return user


def find_user(session: Session, username: str) -> User | None:
    """Return the user of that name."""
    return session.scalar(select(User).where(User.username == username.lower()))


def list_users(
    session: Session, *, cursor: str | None, limit: int
) -> tuple[Sequence[User], str | None]:
    """Return a page of users, newest first, and the cursor of the next one."""
    return page_rows(session, select(User), User.id, cursor=cursor, limit=limit)


def change_user(
    session: Session,
    actor: Actor,
    user_id: UUID,
    *,
    display_name: str | None = None,
    role: Role | None = None,
    disabled: bool | None = None,
    without_totp: bool = False,
) -> User:
    """Change what is given. Disabling ends the user's sessions, tokens and links at once, for good.

    LastAdminError if nobody would be left to administer the node; an account of another hospital stays one.
    """
    user = get_user(session, user_id)
    changed: dict[str, str | bool] = {}
    if display_name is not None and display_name != user.display_name:
        user.display_name = clean(display_name, 200)
        changed["display_name"] = True
    if role is not None and role.value != user.role:
        if Role.PEER in (role, Role(user.role)):
            raise UnprocessableError("role: people and other hospitals have separate accounts")
        _require_other_admin(session, user)
        changed["role"] = user.role = role.value
    if disabled is not None and disabled != (user.disabled_at is not None):
        if disabled:
            _require_other_admin(session, user)
            _end_everything(session, user)
        user.disabled_at = now() if disabled else None
        changed["disabled"] = disabled
    if without_totp and user.totp_sealed is not None:
        _forget_totp(session, user)
        changed["totp"] = False
    if changed:
        session.flush()
        audit.record(session, actor, "user.change", user.username, detail=changed)
    return user


def password_link(session: Session, actor: Actor, user: User, public_url: str) -> str:
    """Return a link through which the user chooses a password; UnprocessableError for who has none or may not."""
    if user.role == Role.PEER:
        raise UnprocessableError("another hospital has no password; make it a token")
    if user.disabled_at is not None:
        raise UnprocessableError("this user is disabled; enable them first")
    link = links.create_link(session, "password", user.id, public_url, now())
    audit.record(session, actor, "user.password-link", user.username)
    return link


def open_setup_link(session: Session, settings: Settings) -> str | None:
    """Return a link for making the first admin, in place of any before; None where there is an admin."""
    if has_admin(session):
        return None
    link = links.create_link(session, "setup", None, settings.public_url, now())
    audit.record(session, SYSTEM, "setup.open")
    return link


def has_admin(session: Session) -> bool:
    """Return whether somebody administers the node: then it is set up."""
    found = select(User.id).where(User.role == Role.ADMIN.value, User.disabled_at.is_(None))
    return session.scalar(found.limit(1)) is not None


def _require_other_admin(session: Session, user: User) -> None:
    if user.role != Role.ADMIN or user.disabled_at is not None:
        return
    admins = select(User.id).where(User.role == Role.ADMIN.value, User.disabled_at.is_(None))
    # held, so that two admins who demote each other at once meet here
    if set(session.scalars(admins.order_by(User.id).with_for_update())) <= {user.id}:
        raise LastAdminError(f"{user.username} is the last admin; make another one first")


def _end_everything(session: Session, user: User) -> None:
    end_sessions(session, user.id)
    links.drop_links(session, user.id)
    session.execute(
        update(ApiToken)
        .where(ApiToken.user_id == user.id, ApiToken.revoked_at.is_(None))
        .values(revoked_at=now())
        .execution_options(synchronize_session=False)
    )


# ------------------------------------------------------------------------------------------ tokens


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
    at = now()
    held = select(func.count()).where(
        ApiToken.user_id == user.id, ApiToken.revoked_at.is_(None), ApiToken.expires_at > at
    )
    if (session.scalar(held) or 0) >= MOST_TOKENS:
        raise TooManyTokensError(f"{user.username} has {MOST_TOKENS} tokens; revoke some first")
    text = new_token()
    token = ApiToken(
        user_id=user.id,
        name=clean(name, 200),
        prefix=text[:12],
        sha256=digest(text),
        scopes=sorted(scopes),
        expires_at=at + timedelta(days=days),
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


def token_owner(session: Session, caller: Principal, username: str | None) -> User:
    """Return for whom the caller may issue a token: for themselves or, an admin, for another hospital's account."""
    if username is None or username.lower() == caller.username:
        return get_user(session, caller.user_id)
    if caller.role is not Role.ADMIN:
        raise ForbiddenError("a token for somebody else is made by an admin")
    user = find_user(session, username)
    if user is None:
        raise UnprocessableError(f"username: there is no user {username}")
    if user.role != Role.PEER or user.disabled_at is not None:
        raise UnprocessableError("username: people make their tokens themselves; this is for peers")
    return user


def list_tokens(
    session: Session, caller: Principal, *, username: str | None, everybody: bool, cursor: str | None, limit: int
) -> tuple[Sequence[ApiToken], str | None]:  # fmt: skip
    """Return a page of the caller's tokens; of somebody else's, or all, for those who decide."""
    statement = select(ApiToken).options(joinedload(ApiToken.user))
    if everybody or username is not None:
        _require_deciding(caller, username)
    if not everybody:
        statement = statement.join(User).where(User.username == (username or caller.username))
    return page_rows(session, statement, ApiToken.id, cursor=cursor, limit=limit)


def expiring_tokens(
    session: Session, caller: Principal, *, within: timedelta, limit: int
) -> Sequence[ApiToken]:
    """Return tokens that will soon work no more, the next first: the caller's, or everybody's for an admin."""
    at = now()
    statement = select(ApiToken).where(
        ApiToken.revoked_at.is_(None), ApiToken.expires_at > at, ApiToken.expires_at <= at + within
    )
    if caller.role is not Role.ADMIN:
        statement = statement.where(ApiToken.user_id == caller.user_id)
    ordered = statement.order_by(ApiToken.expires_at).limit(limit)
    return session.scalars(ordered.options(joinedload(ApiToken.user))).all()


def revoke_token(session: Session, caller: Principal, token_id: UUID) -> None:
    """Let a token work no more. Somebody else's is not there for those who do not decide."""
    token = session.get(ApiToken, token_id)
    if token is None or not (token.user_id == caller.user_id or caller.decides):
        raise NotFoundError(f"there is no token {token_id}")
    if token.revoked_at is None:
        token.revoked_at = now()
        session.flush()
        audit.record(session, caller.actor, "token.revoke", str(token.id))


# ------------------------------------------------------------------------------------------ sessions


def start_session(
    session: Session, user: User, settings: SessionSettings, *, user_agent: str, via: str
) -> SignedIn:
    """Return a new session of the user; sessions that ended long ago are forgotten."""
    at = now()
    session.execute(delete(LoginSession).where(LoginSession.expires_at <= at))
    cookie = new_token("")
    login = LoginSession(
        id=new_id(),
        user_id=user.id,
        sha256=digest(cookie),
        csrf=secrets.token_urlsafe(32),
        seen_at=at,
        expires_at=at + timedelta(hours=settings.absolute_hours),
        user_agent=clean(user_agent, 200),
    )
    session.add(login)
    session.flush()
    actor = Actor("user", str(user.id), user.username)
    audit.record(session, actor, "session.start", str(login.id), detail={"via": via})
    return SignedIn(cookie, login, user)


def list_sessions(
    session: Session, caller: Principal, settings: SessionSettings,
    *, username: str | None, everybody: bool, cursor: str | None, limit: int,
) -> tuple[Sequence[LoginSession], str | None]:  # fmt: skip
    """Return a page of the caller's living sessions; of somebody else's, or all, for those who decide."""
    at = now()
    statement = (
        select(LoginSession)
        .where(
            LoginSession.expires_at > at,
            LoginSession.seen_at > at - timedelta(minutes=settings.idle_minutes),
        )
        .options(joinedload(LoginSession.user))
    )
    if everybody or username is not None:
        _require_deciding(caller, username)
    if not everybody:
        statement = statement.join(User).where(User.username == (username or caller.username))
    return page_rows(session, statement, LoginSession.id, cursor=cursor, limit=limit)


def current_session(session: Session, caller: Principal) -> LoginSession:
    """Return the session that the caller is using."""
    row = session.get(LoginSession, caller.credential_id, options=[joinedload(LoginSession.user)])
    if row is None:  # ended between the guard and now
        raise UnauthorizedError
    return row


def end_session(session: Session, caller: Principal, which: UUID | Literal["current"]) -> bool:
    """End a session and return whether it was the caller's current one.

    Others' are not there for those who do not decide.
    """
    session_id = caller.credential_id if which == "current" else which
    login = session.get(LoginSession, session_id)
    if login is None or not (login.user_id == caller.user_id or caller.decides):
        raise NotFoundError(f"there is no session {session_id}")
    session.delete(login)
    session.flush()
    audit.record(session, caller.actor, "session.end", str(session_id))
    return session_id == caller.credential_id


def end_sessions(session: Session, user_id: UUID, *, but: UUID | None = None) -> None:
    """End every session of a user, but for one."""
    ending = delete(LoginSession).where(LoginSession.user_id == user_id)
    session.execute(ending if but is None else ending.where(LoginSession.id != but))


def drop_cookie(session: Session, cookie: str) -> None:
    """End the session of a cookie that a new login replaces."""
    session.execute(delete(LoginSession).where(LoginSession.sha256 == digest(cookie)))


def _require_deciding(caller: Principal, username: str | None) -> None:
    if not caller.decides and username != caller.username:
        raise ForbiddenError("what belongs to others is shown to stewards and admins")


# ------------------------------------------------------------------------------------------ second factor


def start_totp(session: Session, user: User, vault: Vault) -> str:
    """Return a new secret for the user's app; it counts once a code of it was shown. TotpOnError if one counts."""
    if user.totp_confirmed_at is not None:
        raise TotpOnError("turn one-time passwords off before setting them up anew")
    secret = totp.new_secret()
    user.totp_sealed, user.totp_last_step = vault.seal(secret, _purpose(user)), None
    session.flush()
    audit.record(session, _self(user), "totp.start", user.username)
    return secret


def confirm_totp(session: Session, caller: Principal, code: str, vault: Vault) -> list[str]:
    """Turn one-time passwords on and return the recovery codes, which are shown this once."""
    user = get_user(session, caller.user_id)
    if user.totp_confirmed_at is not None:
        raise TotpOnError("one-time passwords are on already")
    if user.totp_sealed is None:
        raise ConflictError("start with POST /account/totp, which gives the secret")
    at = now()
    step = totp.matching_step(vault.open(user.totp_sealed, _purpose(user)), code, at)
    if step is None:
        raise WrongCodeError("code: it does not fit; is the clock of the device right?")
    user.totp_confirmed_at, user.totp_last_step = at, step
    codes = totp.new_recovery_codes()
    session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user.id))
    session.add_all(
        RecoveryCode(user_id=user.id, sha256=totp.recovery_digest(one)) for one in codes
    )
    session.flush()
    audit.record(session, caller.actor, "totp.confirm", user.username)
    return codes


def remove_totp(session: Session, user: User) -> None:
    """Turn one-time passwords off."""
    _forget_totp(session, user)
    session.flush()
    audit.record(session, _self(user), "totp.remove", user.username)


def use_code(session: Session, user: User, code: str | None, vault: Vault, at: datetime) -> bool:
    """Return whether `code` is what is asked for besides the password, and use it up; True where nothing is."""
    if user.totp_confirmed_at is None or user.totp_sealed is None:
        return True
    if code is None:
        return False
    step = totp.matching_step(vault.open(user.totp_sealed, _purpose(user)), code, at)
    last = User.totp_last_step
    using = (
        update(User)
        .where(User.id == user.id, or_(last.is_(None), last < step))
        .values(totp_last_step=step)
        if step is not None
        else update(RecoveryCode)
        .where(
            RecoveryCode.user_id == user.id,
            RecoveryCode.sha256 == totp.recovery_digest(code),
            RecoveryCode.used_at.is_(None),
        )
        .values(used_at=at)
    )
    done = session.execute(using.execution_options(synchronize_session=False))
    return int(done.rowcount) == 1  # type: ignore[attr-defined]


def _forget_totp(session: Session, user: User) -> None:
    user.totp_sealed = user.totp_confirmed_at = user.totp_last_step = None
    session.execute(delete(RecoveryCode).where(RecoveryCode.user_id == user.id))


def _purpose(user: User) -> str:
    return f"totp:{user.id}"


def _self(user: User) -> Actor:
    return Actor("user", str(user.id), user.username)

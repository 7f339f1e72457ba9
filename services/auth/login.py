"""Where a password is looked at: logging in, setting up, choosing and changing a password.

These rules open their own short transactions, the only ones of this feature that do: an attempt must be remembered
although the request fails, and hashing takes a tenth of a second, in which nobody may be kept from writing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from services.audit import service as audit
from services.audit.actor import ANONYMOUS, SYSTEM
from services.auth import links, service, throttle
from services.auth.links import LinkGoneError
from services.auth.models import User
from services.auth.passwords import check_password, hash_password, require_strong
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.auth.service import SignedIn
from services.kit.db import now
from services.kit.errors import UnauthorizedError, UnprocessableError
from services.kit.resources import Resources


class LoginRefusedError(UnauthorizedError):
    """The name, the password or the one-time password is wrong; which one is not said."""

    slug, title = "login-refused", "That is not right"


class WrongPasswordError(UnprocessableError):
    """The current password is another one."""

    slug, title = "wrong-password", "The current password is another one"


@dataclass(frozen=True, slots=True)
class Client:
    """From where somebody logs in."""

    address: str
    user_agent: str
    cookie: str | None = None  # of a session that the new one replaces


def log_in(
    resources: Resources, client: Client, *, username: str, password: str, code: str | None
) -> SignedIn:
    """Return a new session. LoginRefusedError or LoginThrottledError, alike for every reason and every name."""
    settings, at = resources.settings.session, now()
    with resources.sessions.begin() as session:
        throttle.take(session, username, client.address, settings, at)
    with resources.reading() as session:
        known = service.find_user(session, username)
        usable = known is not None and known.disabled_at is None
        stored = known.password_hash if known is not None and usable else None
    fits = check_password(password, stored)
    with resources.sessions.begin() as session:
        user = session.get(User, known.id) if known is not None and fits else None
        alive = user is not None and user.disabled_at is None
        if (
            user is not None
            and alive
            and service.use_code(session, user, code, resources.vault, at)
        ):
            throttle.give_back(session, username, client.address, settings, at)
            return _start(session, user, resources, client, "password")
        audit.record(
            session,
            ANONYMOUS,
            "session.refuse",
            known.username if known is not None else "",  # what was typed may be a password
            outcome="refused",
            detail={"address": client.address},
        )
    raise LoginRefusedError(
        "the user name, the password or the one-time password is wrong; who uses an app for one-time passwords sends "
        "its `code`, or a recovery code"
    )


def set_up(
    resources: Resources, client: Client, *, token: str, username: str, display_name: str, password: str
) -> SignedIn:  # fmt: skip
    """Make the first admin and log them in. LinkGoneError if the link does not work, or there is an admin."""
    at = now()
    with resources.reading() as session:
        link = links.open_link(session, "setup", token, at)
        _require_open(session)
    require_strong(password, (username, display_name))
    hashed = hash_password(password)
    with resources.sessions.begin() as session:
        links.use_link(session, link, "setup", at)
        _require_open(session)
        user = service.create_user(
            session, SYSTEM, username=username, display_name=display_name, role=Role.ADMIN
        )
        user.password_hash = hashed
        return _start(session, user, resources, client, "setup")


def choose_password(resources: Resources, *, token: str, password: str) -> None:
    """Give the user of a link the password that they chose. It ends their sessions, and any wait for a login."""
    at = now()
    with resources.reading() as session:
        link = links.open_link(session, "password", token, at)
        user = _of_link(session, link.user_id)
    require_strong(password, (user.username, user.display_name))
    hashed = hash_password(password)
    with resources.sessions.begin() as session:
        links.use_link(session, link, "password", at)
        user = _of_link(session, link.user_id)
        user.password_hash = hashed
        service.end_sessions(session, user.id)
        throttle.forget_account(session, user.username)
        session.flush()
        audit.record(session, ANONYMOUS, "password.choose", user.username)


def change_password(
    resources: Resources, caller: Principal, address: str, *, current: str, new: str
) -> None:
    """Change the caller's password and end their other sessions."""
    with resources.reading() as session:
        user = service.get_user(session, caller.user_id)
    require_strong(new, (user.username, user.display_name))
    hashed = hash_password(new)
    with confirmed(resources, caller, address, current) as (session, user):
        user.password_hash = hashed
        service.end_sessions(session, user.id, but=caller.credential_id)
        session.flush()
        audit.record(session, caller.actor, "password.change", user.username)


@contextmanager
def confirmed(
    resources: Resources, caller: Principal, address: str, password: str
) -> Iterator[tuple[Session, User]]:
    """Yield a transaction and the caller's row, once they have shown their password again.

    A stolen session must not be enough to keep its owner out. WrongPasswordError, and LoginThrottledError as for a
    login: both count alike.
    """
    settings, at = resources.settings.session, now()
    with resources.sessions.begin() as session:
        throttle.take(session, caller.username, address, settings, at)
        stored = service.get_user(session, caller.user_id).password_hash
    if not check_password(password, stored):
        with resources.sessions.begin() as session:
            audit.record(
                session,
                caller.actor,
                "password.refuse",
                caller.username,
                outcome="refused",
                detail={"address": address},
            )
        raise WrongPasswordError("the current password is another one")
    with resources.sessions.begin() as session:
        throttle.give_back(session, caller.username, address, settings, at)
        yield session, service.get_user(session, caller.user_id)


def _start(
    session: Session, user: User, resources: Resources, client: Client, via: str
) -> SignedIn:
    if client.cookie is not None:
        service.drop_cookie(session, client.cookie)
    return service.start_session(
        session, user, resources.settings.session, user_agent=client.user_agent, via=via
    )


def _require_open(session: Session) -> None:
    if service.has_admin(session):
        raise LinkGoneError("this node is set up; an admin makes further users")


def _of_link(session: Session, user_id: object) -> User:
    user = session.get(User, user_id)
    if user is None or user.disabled_at is not None:
        raise LinkGoneError("this link does not work any more; ask for a new one")
    return user

"""Tables of people, sessions, tokens, one-time links and failed logins. Secrets are stored as digests only."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from services.kit.db import Base, Row


class User(Row):
    """A person, or the account of another hospital (role `peer`, which has no password)."""

    __tablename__ = "users"

    username: Mapped[str] = mapped_column(String(64), unique=True)  # lower case
    display_name: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(16))  # see permissions.Role
    password_hash: Mapped[str | None] = mapped_column(String(255))  # argon2id
    totp_sealed: Mapped[str | None] = mapped_column(
        String(512)
    )  # the shared secret, sealed by the vault
    totp_confirmed_at: Mapped[datetime | None]  # one-time passwords are asked for from then on
    totp_last_step: Mapped[int | None]  # a one-time password works once
    disabled_at: Mapped[datetime | None]


class RecoveryCode(Row):
    """One code that stands in for a one-time password, once."""

    __tablename__ = "recovery_codes"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), info={"object": False})
    used_at: Mapped[datetime | None]


class LoginSession(Row):
    """A logged-in browser: an opaque random cookie whose digest is here."""

    __tablename__ = "login_sessions"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True, info={"object": False})
    csrf: Mapped[str] = mapped_column(
        String(64)
    )  # must come back in a header on every unsafe request
    seen_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    user_agent: Mapped[str] = mapped_column(String(200))

    user: Mapped[User] = relationship(lazy="raise")


class ApiToken(Row):
    """A token for scripts and for other hospitals."""

    __tablename__ = "api_tokens"

    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(
        String(16)
    )  # the first characters, for people to tell tokens apart
    sha256: Mapped[str] = mapped_column(String(64), unique=True, info={"object": False})
    scopes: Mapped[list[str]]
    expires_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    user: Mapped[User] = relationship(lazy="raise")


class OneTimeLink(Row):
    """A link that works once: setting up the node, or choosing a password."""

    __tablename__ = "one_time_links"

    purpose: Mapped[str] = mapped_column(String(16))  # setup, password
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    sha256: Mapped[str] = mapped_column(String(64), unique=True, info={"object": False})
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]


class LoginThrottle(Base):
    """Failed logins of one account name or one address, whether the account exists or not."""

    __tablename__ = "login_throttle"

    key: Mapped[str] = mapped_column(
        String(80), primary_key=True
    )  # digest of the name, or the address
    failures: Mapped[int]
    waits_until: Mapped[datetime | None]
    updated_at: Mapped[datetime]

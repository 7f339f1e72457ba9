"""People and credentials as the API takes and shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.auth.models import ApiToken, LoginSession, User
from services.auth.passwords import LONGEST, SHORTEST
from services.auth.permissions import Role, Scope

Username = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{1,63}$", to_lower=True),
    Field(
        description="Letters, digits, `.` `_` `@` `-`; case does not matter.", examples=["maria"]
    ),
]
Title = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=200),
    Field(description="For people.", examples=["Maria Rossi"]),
]
Password = Annotated[str, StringConstraints(max_length=LONGEST)]
NewPassword = Annotated[
    str,
    StringConstraints(max_length=LONGEST),
    Field(
        description=f"{SHORTEST} characters or more; common ones, rows of keys and one's own name are refused.",
        examples=["lantern-orbit-velvet-27"],
    ),
]
LinkToken = Annotated[
    str,
    StringConstraints(max_length=100),
    Field(description="What follows `#` in the link.", examples=["ppdd_…"]),
]
Code = Annotated[
    str,
    StringConstraints(max_length=40),
    Field(description="Six digits of the authenticator app.", examples=["492039"]),
]


class _Input(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SetupIn(_Input):
    """The first administrator."""

    token: LinkToken
    username: Username
    display_name: Title
    password: NewPassword


class LoginIn(_Input):
    """A login."""

    username: Annotated[str, StringConstraints(max_length=64), Field(examples=["maria"])]
    password: Annotated[Password, Field(examples=["lantern-orbit-velvet-27"])]
    code: Annotated[
        Code | None, Field(description="Of the authenticator app, or a recovery code.")
    ] = None


class ChoosePasswordIn(_Input):
    """A password chosen through a link."""

    token: LinkToken
    password: NewPassword


class ChangePasswordIn(_Input):
    """A change of one's own password."""

    current_password: Password
    new_password: NewPassword


class ConfirmIn(_Input):
    """The caller's password, once more."""

    password: Password


class CodeIn(_Input):
    """A code of the authenticator app."""

    code: Code


class TokenIn(_Input):
    """A new API token."""

    name: Annotated[Title, Field(description="What it is for.", examples=["nightly distillation"])]
    scopes: Annotated[
        list[Scope],
        Field(min_length=1, max_length=len(Scope), examples=[["jobs:read", "jobs:write"]]),
    ]
    days: Annotated[int, Field(ge=1, le=366, description="How long it works.")] = 90
    username: Annotated[
        Username | None,
        Field(
            description="The account of another hospital, for which an admin makes the token; else the caller's own."
        ),
    ] = None


class UserIn(_Input):
    """A new user."""

    username: Username
    display_name: Title
    role: Role


class UserChange(_Input):
    """What is to change; what is absent stays."""

    display_name: Title | None = None
    role: Role | None = None
    disabled: Annotated[
        bool | None,
        Field(description="True ends sessions, tokens and links of the user at once, for good."),
    ] = None
    totp: Annotated[
        Literal[False] | None,
        Field(description="False turns one-time passwords off, for somebody who lost the device."),
    ] = None


class SetupOut(BaseModel):
    """Whether the node waits for its first administrator."""

    open: bool


class UserOut(BaseModel):
    """A person, or the account of another hospital."""

    id: UUID
    username: str
    display_name: str
    role: Role
    totp: bool = Field(description="Whether one-time passwords are asked for.")
    has_password: bool
    disabled_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, user: User) -> UserOut:
        """Return a user as they are shown."""
        return cls(
            id=user.id,
            username=user.username,
            display_name=user.display_name,
            role=Role(user.role),
            totp=user.totp_confirmed_at is not None,
            has_password=user.password_hash is not None,
            disabled_at=user.disabled_at,
            created_at=user.created_at,
        )


class LinkOut(BaseModel):
    """A link for choosing a password: give it to the person, on a way that nobody else reads."""

    url: str
    hours: int


class NewUserOut(UserOut):
    """A new user, with the link through which a person chooses their password."""

    password_link: LinkOut | None


class SessionOut(BaseModel):
    """A session of somebody."""

    id: UUID
    username: str
    created_at: datetime
    seen_at: datetime
    expires_at: datetime
    user_agent: str
    current: bool = Field(description="Whether this request belongs to it.")

    @classmethod
    def of(cls, login: LoginSession, current: UUID) -> SessionOut:
        """Return a session as it is shown."""
        return cls(
            id=login.id,
            username=login.user.username,
            created_at=login.created_at,
            seen_at=login.seen_at,
            expires_at=login.expires_at,
            user_agent=login.user_agent,
            current=login.id == current,
        )


class CurrentSessionOut(BaseModel):
    """The caller's own session."""

    id: UUID
    user: UserOut
    csrf: str = Field(
        description="Goes into the header `X-CSRF-Token` of every request that changes something."
    )
    expires_at: datetime
    idle_minutes: int = Field(description="Unused for so long, it ends.")


class TotpOut(BaseModel):
    """What the authenticator app needs; shown this once."""

    secret: str
    uri: str = Field(description="`otpauth://…`, for a QR code.")


class RecoveryCodesOut(BaseModel):
    """Codes that each stand in for a one-time password, once; shown this once."""

    recovery_codes: list[str]


class TokenOut(BaseModel):
    """An API token without its text."""

    id: UUID
    username: str
    name: str
    prefix: str = Field(description="How it begins, to tell it apart.", examples=["ppdd_Xk3d9aQ"])
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, token: ApiToken, username: str) -> TokenOut:
        """Return a token as it is shown."""
        return cls(
            id=token.id,
            username=username,
            name=token.name,
            prefix=token.prefix,
            scopes=[Scope(scope) for scope in token.scopes],
            created_at=token.created_at,
            expires_at=token.expires_at,
            last_used_at=token.last_used_at,
            revoked_at=token.revoked_at,
        )


class NewTokenOut(TokenOut):
    """A new API token; its text is shown this once."""

    token: str = Field(examples=["ppdd_…"])

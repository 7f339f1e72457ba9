"""Routes under `/setup`, `/sessions`, `/account`, `/tokens` and `/users`."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Body, Query, Request, Response, status

from services.auth import login, service, totp
from services.auth.dependencies import (
    AddressDep,
    PrincipalDep,
    clear_cookie,
    cookie_of,
    set_cookie,
)
from services.auth.links import LASTS, LinkGoneError
from services.auth.login import Client, LoginRefusedError, WrongPasswordError
from services.auth.passwords import WeakPasswordError
from services.auth.permissions import Role
from services.auth.schemas import (
    ChangePasswordIn,
    ChoosePasswordIn,
    CodeIn,
    ConfirmIn,
    CurrentSessionOut,
    LinkOut,
    LoginIn,
    NewTokenOut,
    NewUserOut,
    RecoveryCodesOut,
    SessionOut,
    SetupIn,
    SetupOut,
    TokenIn,
    TokenOut,
    TotpOut,
    UserChange,
    UserIn,
    UserOut,
)
from services.auth.service import (
    LastAdminError,
    SignedIn,
    TooManyTokensError,
    TotpOnError,
    UsernameTakenError,
    WrongCodeError,
)
from services.auth.throttle import LoginThrottledError
from services.kit.errors import BadRequestError, NotFoundError
from services.kit.http import FeatureRouter, ResourcesDep, SessionDep, SettingsDep
from services.kit.openapi import problem_responses
from services.kit.paging import DEFAULT_LIMIT, Cursor, Limit, Page, link_next

setup = FeatureRouter(prefix="/setup", tags=["setup"])
sessions = FeatureRouter(prefix="/sessions", tags=["sessions"])
account = FeatureRouter(prefix="/account", tags=["account"])
tokens = FeatureRouter(prefix="/tokens", tags=["tokens"])
users = FeatureRouter(prefix="/users", tags=["users"])

Username = Annotated[
    str | None, Query(max_length=64, description="Whose; for stewards and admins.")
]
Everybody = Annotated[bool, Query(description="Everybody's; for stewards and admins.")]


# ------------------------------------------------------------------------------------------ set-up


@setup.get("", name="read", summary="Is the node waiting for its first administrator?")
def read_setup(session: SessionDep) -> SetupOut:
    """Return whether somebody must still follow the link that the node printed."""
    return SetupOut(open=not service.has_admin(session))


@setup.post(
    "",
    name="complete",
    status_code=status.HTTP_201_CREATED,
    summary="Make the first administrator",
    responses=problem_responses(LinkGoneError, UsernameTakenError, WeakPasswordError),
)
def complete_setup(
    request: Request,
    response: Response,
    resources: ResourcesDep,
    address: AddressDep,
    body: SetupIn,
) -> CurrentSessionOut:
    """Make the first administrator through the link that the node printed, and log them in."""
    signed_in = login.set_up(
        resources,
        _client(request, address),
        token=body.token,
        username=body.username,
        display_name=body.display_name,
        password=body.password,
    )
    return _signed_in(request, response, resources, signed_in)


# ------------------------------------------------------------------------------------------ sessions


@sessions.post(
    "",
    name="login",
    status_code=status.HTTP_201_CREATED,
    summary="Log in",
    responses=problem_responses(LoginRefusedError, LoginThrottledError),
)
def log_in(
    request: Request,
    response: Response,
    resources: ResourcesDep,
    address: AddressDep,
    body: LoginIn,
) -> CurrentSessionOut:
    """Start a session and set its cookie. Why a login is refused is not said; after too many one must wait."""
    signed_in = login.log_in(
        resources,
        _client(request, address),
        username=body.username,
        password=body.password,
        code=body.code,
    )
    return _signed_in(request, response, resources, signed_in)


@sessions.post(
    "/password",
    name="choose_password",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Choose a password through a link",
    responses=problem_responses(LinkGoneError, WeakPasswordError),
)
def choose_password(resources: ResourcesDep, body: ChoosePasswordIn) -> None:
    """Choose the password of a new account, or a new one in place of a forgotten one; then log in with it."""
    login.choose_password(resources, token=body.token, password=body.password)


@sessions.get("/current", name="current", summary="Read the current session")
def current_session(
    session: SessionDep, settings: SettingsDep, principal: PrincipalDep
) -> CurrentSessionOut:
    """Return who is logged in, and the value that requests which change something must send."""
    row = service.current_session(session, principal)
    return CurrentSessionOut(
        id=row.id,
        user=UserOut.of(row.user),
        csrf=row.csrf,
        expires_at=row.expires_at,
        idle_minutes=settings.session.idle_minutes,
    )


@sessions.get(
    "",
    name="list",
    summary="List sessions",
    responses=problem_responses(BadRequestError),
)
def list_sessions(
    request: Request, response: Response, session: SessionDep, settings: SettingsDep, principal: PrincipalDep,
    username: Username = None, everybody: Everybody = False, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT,
) -> Page[SessionOut]:  # fmt: skip
    """Return a page of the caller's living sessions, newest first."""
    rows, following = service.list_sessions(
        session, principal, settings.session,
        username=username, everybody=everybody, cursor=cursor, limit=limit,
    )  # fmt: skip
    link_next(request, response, following)
    items = [SessionOut.of(row, principal.credential_id) for row in rows]
    return Page(items=items, next=following)


@sessions.delete(
    "/{session_id}",
    name="end",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Log out, or end another session",
    responses=problem_responses(NotFoundError),
)
def end_session(
    request: Request, response: Response, session: SessionDep, principal: PrincipalDep,
    session_id: UUID | Literal["current"],
) -> None:  # fmt: skip
    """End the `current` session or another of one's own; stewards and admins end anybody's."""
    if service.end_session(session, principal, session_id):
        clear_cookie(request, response)


# ------------------------------------------------------------------------------------------ account


@account.post(
    "/password",
    name="change_password",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Change one's password",
    responses=problem_responses(WrongPasswordError, WeakPasswordError, LoginThrottledError),
)
def change_password(
    resources: ResourcesDep, principal: PrincipalDep, address: AddressDep, body: ChangePasswordIn
) -> None:
    """Change the caller's password. Their other sessions end."""
    login.change_password(
        resources, principal, address, current=body.current_password, new=body.new_password
    )


@account.post(
    "/totp",
    name="start_totp",
    summary="Set up one-time passwords",
    responses=problem_responses(WrongPasswordError, TotpOnError, LoginThrottledError),
)
def start_totp(
    resources: ResourcesDep, principal: PrincipalDep, address: AddressDep, body: ConfirmIn
) -> TotpOut:
    """Return a secret for an authenticator app. It counts once a code of it was confirmed."""
    with login.confirmed(resources, principal, address, body.password) as (session, user):
        secret = service.start_totp(session, user, resources.vault)
    issuer = f"PPDD {resources.settings.site_title}"
    return TotpOut(secret=secret, uri=totp.address_of(secret, principal.username, issuer))


@account.post(
    "/totp/confirm",
    name="confirm_totp",
    summary="Turn one-time passwords on",
    responses=problem_responses(WrongCodeError, TotpOnError),
)
def confirm_totp(
    session: SessionDep, resources: ResourcesDep, principal: PrincipalDep, body: CodeIn
) -> RecoveryCodesOut:
    """Show that the app works. From now on a login needs a code; keep the recovery codes for a lost device."""
    codes = service.confirm_totp(session, principal, body.code, resources.vault)
    return RecoveryCodesOut(recovery_codes=codes)


@account.delete(
    "/totp",
    name="remove_totp",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Turn one-time passwords off",
    responses=problem_responses(WrongPasswordError, LoginThrottledError),
)
def remove_totp(
    resources: ResourcesDep,
    principal: PrincipalDep,
    address: AddressDep,
    body: Annotated[ConfirmIn, Body()],
) -> None:
    """Let a login need the password alone."""
    with login.confirmed(resources, principal, address, body.password) as (session, user):
        service.remove_totp(session, user)


# ------------------------------------------------------------------------------------------ tokens


@tokens.post(
    "",
    name="create",
    status_code=status.HTTP_201_CREATED,
    summary="Make an API token",
    responses=problem_responses(TooManyTokensError),
)
def create_token(session: SessionDep, principal: PrincipalDep, body: TokenIn) -> NewTokenOut:
    """Make a token and return its text, this once. An admin makes those of other hospitals' accounts."""
    owner = service.token_owner(session, principal, body.username)
    token, text = service.issue_token(
        session,
        principal.actor,
        owner,
        name=body.name,
        scopes=frozenset(body.scopes),
        days=body.days,
    )
    return NewTokenOut(**TokenOut.of(token, owner.username).model_dump(), token=text)


@tokens.get(
    "",
    name="list",
    summary="List API tokens",
    responses=problem_responses(BadRequestError),
)
def list_tokens(
    request: Request, response: Response, session: SessionDep, principal: PrincipalDep,
    username: Username = None, everybody: Everybody = False, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT,
) -> Page[TokenOut]:  # fmt: skip
    """Return a page of the caller's tokens, newest first, without their texts."""
    rows, following = service.list_tokens(
        session, principal, username=username, everybody=everybody, cursor=cursor, limit=limit
    )
    link_next(request, response, following)
    return Page(items=[TokenOut.of(row, row.user.username) for row in rows], next=following)


@tokens.delete(
    "/{token_id}",
    name="revoke",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Revoke an API token",
    responses=problem_responses(NotFoundError),
)
def revoke_token(session: SessionDep, principal: PrincipalDep, token_id: UUID) -> None:
    """Let a token work no more, at once; stewards and admins revoke anybody's."""
    service.revoke_token(session, principal, token_id)


# ------------------------------------------------------------------------------------------ users


@users.post(
    "",
    name="create",
    status_code=status.HTTP_201_CREATED,
    summary="Add a user",
    responses=problem_responses(UsernameTakenError),
)
def create_user(
    session: SessionDep, settings: SettingsDep, principal: PrincipalDep, body: UserIn
) -> NewUserOut:
    """Add a person, who chooses a password through the link in the answer; or a `peer`, for whom a token is made."""
    user = service.create_user(
        session,
        principal.actor,
        username=body.username,
        display_name=body.display_name,
        role=body.role,
    )
    link = None
    if body.role is not Role.PEER:
        url = service.password_link(session, principal.actor, user, settings.public_url)
        link = _link(url)
    return NewUserOut(**UserOut.of(user).model_dump(), password_link=link)


@users.get("", name="list", summary="List users", responses=problem_responses(BadRequestError))
def list_users(
    request: Request, response: Response, session: SessionDep,
    cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT,
) -> Page[UserOut]:  # fmt: skip
    """Return a page of users, newest first."""
    rows, following = service.list_users(session, cursor=cursor, limit=limit)
    link_next(request, response, following)
    return Page(items=[UserOut.of(row) for row in rows], next=following)


@users.get(
    "/{user_id}", name="read", summary="Read a user", responses=problem_responses(NotFoundError)
)
def read_user(session: SessionDep, user_id: UUID) -> UserOut:
    """Return one user."""
    return UserOut.of(service.get_user(session, user_id))


@users.patch(
    "/{user_id}",
    name="change",
    summary="Change a user",
    responses=problem_responses(NotFoundError, LastAdminError),
)
def change_user(
    session: SessionDep, principal: PrincipalDep, user_id: UUID, body: UserChange
) -> UserOut:
    """Change name or role, disable or enable, or turn one-time passwords off."""
    user = service.change_user(
        session,
        principal.actor,
        user_id,
        display_name=body.display_name,
        role=body.role,
        disabled=body.disabled,
        without_totp=body.totp is False,
    )
    return UserOut.of(user)


@users.post(
    "/{user_id}/password-link",
    name="password_link",
    status_code=status.HTTP_201_CREATED,
    summary="Make a link for choosing a password",
    responses=problem_responses(NotFoundError),
)
def make_password_link(
    session: SessionDep, settings: SettingsDep, principal: PrincipalDep, user_id: UUID
) -> LinkOut:
    """Make a link that works once, for somebody who forgot their password; earlier ones stop working."""
    user = service.get_user(session, user_id)
    return _link(service.password_link(session, principal.actor, user, settings.public_url))


router = APIRouter()
for part in (setup, sessions, account, tokens, users):
    router.include_router(part)


def _client(request: Request, address: str) -> Client:
    agent = request.headers.get("user-agent", "")
    return Client(address=address, user_agent=agent, cookie=cookie_of(request))


def _signed_in(
    request: Request, response: Response, resources: ResourcesDep, signed_in: SignedIn
) -> CurrentSessionOut:
    set_cookie(request, response, signed_in.cookie)
    return CurrentSessionOut(
        id=signed_in.login.id,
        user=UserOut.of(signed_in.user),
        csrf=signed_in.login.csrf,
        expires_at=signed_in.login.expires_at,
        idle_minutes=resources.settings.session.idle_minutes,
    )


def _link(url: str) -> LinkOut:
    return LinkOut(url=url, hours=int(LASTS.total_seconds() // 3600))

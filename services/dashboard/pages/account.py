"""One's own account: password, one-time passwords, API tokens, sessions."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from fastapi import Request, Response

from services.auth import login, service, totp
from services.auth.dependencies import AddressDep, PrincipalDep, clear_cookie
from services.auth.permissions import role_scopes
from services.auth.principal import Principal
from services.auth.schemas import ChangePasswordIn, CodeIn, ConfirmIn, TokenIn, UserOut
from services.dashboard.forms import Form, FormDep
from services.dashboard.rendering import redirect, render
from services.dashboard.route import page_router
from services.dashboard.words import ROLES, SCOPES
from services.kit.db import now
from services.kit.http import ResourcesDep, SessionDep
from services.kit.keyset import MAX_LIMIT
from services.kit.paging import Cursor
from services.kit.resources import Resources

router = page_router()
DAYS = 90
FEW = 25  # tokens of a page


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown this once, and which of the page's forms it or a refusal belongs to."""

    form: str = ""  # password, totp, code, token
    secret: str = ""  # of one-time passwords
    uri: str = ""  # the same for an app
    recovery_codes: tuple[str, ...] = ()
    token: str = ""


@router.get("/account")
def account(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, cursor: Cursor = None
) -> Response:
    """Show who is logged in, with what they log in, and their tokens and sessions."""
    return _page(request, resources, principal, cursor=cursor)


@router.post("/account/password")
def change_password(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    address: AddressDep,
    form: FormDep,
) -> Response:
    """Change the password; other sessions end."""
    with form:
        body = form.validated(ChangePasswordIn)
        login.change_password(
            resources, principal, address, current=body.current_password, new=body.new_password
        )
        return redirect("/account", notice="password-changed")
    return _page(request, resources, principal, form, Shown("password"))


@router.post("/account/totp")
def start_totp(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    address: AddressDep,
    form: FormDep,
) -> Response:
    """Show a secret for an authenticator app, this once; it counts when a code of it was confirmed."""
    with form:
        body = form.validated(ConfirmIn)
        with login.confirmed(resources, principal, address, body.password) as (session, user):
            secret = service.start_totp(session, user, resources.vault)
        issuer = f"PPDD {resources.settings.site_title}"
        uri = totp.address_of(secret, principal.username, issuer)
        return _page(request, resources, principal, Form(), Shown("code", secret=secret, uri=uri))
    return _page(request, resources, principal, form, Shown("totp"))


@router.post("/account/totp/confirm")
def confirm_totp(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Turn one-time passwords on and show the recovery codes, this once."""
    with form:
        body = form.validated(CodeIn)
        with resources.transaction() as session:
            codes = service.confirm_totp(session, principal, body.code, resources.vault)
        shown = Shown("code", recovery_codes=tuple(codes))
        return _page(request, resources, principal, Form(), shown)
    return _page(request, resources, principal, form, Shown("code"))


@router.post("/account/totp/remove")
def remove_totp(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    address: AddressDep,
    form: FormDep,
) -> Response:
    """Let a login need the password alone."""
    with form:
        body = form.validated(ConfirmIn)
        with login.confirmed(resources, principal, address, body.password) as (session, user):
            service.remove_totp(session, user)
        return redirect("/account", notice="totp-removed")
    return _page(request, resources, principal, form, Shown("totp"))


@router.post("/account/tokens")
def make_token(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Make a token of one's own and show its text, this once."""
    with form:
        body = form.validated(TokenIn, form.tree("scopes"))
        with resources.transaction() as session:
            _, text = service.issue_token(
                session, principal.actor, service.token_owner(session, principal, None),
                name=body.name, scopes=frozenset(body.scopes), days=body.days,
            )  # fmt: skip
        return _page(request, resources, principal, Form(), Shown("token", token=text))
    return _page(request, resources, principal, form, Shown("token"))


@router.post("/account/tokens/{token_id}/revoke")
def revoke_token(session: SessionDep, principal: PrincipalDep, token_id: UUID) -> Response:
    """Let one of one's own tokens work no more."""
    service.revoke_token(session, principal, token_id)
    return redirect("/account", notice="token-revoked")


@router.post("/account/sessions/{session_id}/end")
def end_session(
    request: Request, session: SessionDep, principal: PrincipalDep, session_id: UUID
) -> Response:
    """End one of one's own sessions; the current one means logging out."""
    if not service.end_session(session, principal, session_id):
        return redirect("/account", notice="session-ended")
    response = redirect("/login", notice="logged-out")
    clear_cookie(request, response)
    return response


def _page(
    request: Request,
    resources: Resources,
    principal: Principal,
    form: Form | None = None,
    shown: Shown | None = None,
    cursor: str | None = None,
) -> Response:
    with resources.reading() as session:
        tokens, following = service.list_tokens(
            session, principal, username=None, everybody=False, cursor=cursor, limit=FEW
        )
        sessions, _ = service.list_sessions(
            session, principal, resources.settings.session,
            username=None, everybody=False, cursor=None, limit=MAX_LIMIT,
        )  # fmt: skip
        return render(
            request,
            "account.html",
            form=form,
            shown=shown or Shown(),
            blank=Form(),
            user=UserOut.of(service.get_user(session, principal.user_id)),
            roles=ROLES,
            tokens=tokens,
            following=following,
            sessions=sessions,
            current=principal.credential_id,
            idle_minutes=resources.settings.session.idle_minutes,
            scopes=[(one, SCOPES[one]) for one in SCOPES if one in role_scopes(principal.role)],
            days=DAYS,
            at=now(),
        )

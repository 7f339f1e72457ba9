"""People and accounts of other hospitals: added, changed, disabled; their tokens and sessions."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from fastapi import Request, Response

from services.auth import service
from services.auth.dependencies import PrincipalDep
from services.auth.links import LASTS
from services.auth.permissions import Role, role_scopes
from services.auth.principal import Principal
from services.auth.schemas import TokenIn, UserChange, UserIn, UserOut
from services.dashboard.forms import Form, FormDep
from services.dashboard.rendering import may, redirect, render
from services.dashboard.route import page_router
from services.dashboard.words import ROLES, SCOPES
from services.kit.db import now
from services.kit.http import ResourcesDep, SessionDep
from services.kit.keyset import MAX_LIMIT
from services.kit.paging import DEFAULT_LIMIT, Cursor
from services.kit.resources import Resources

router = page_router()
PEER_DAYS = 366
FEW = 25  # tokens of a page


@router.get("/users")
def users(request: Request, session: SessionDep, cursor: Cursor = None) -> Response:
    """Show a page of people and other hospitals, newest first."""
    rows, following = service.list_users(session, cursor=cursor, limit=DEFAULT_LIMIT)
    return render(
        request, "users.html", users=[UserOut.of(one) for one in rows], following=following
    )


@router.get("/users/new")
def new_user(request: Request) -> Response:
    """Show the form for a person or another hospital."""
    return render(request, "user_new.html", roles=ROLES)


@router.post("/users/new")
def add_user(
    request: Request, resources: ResourcesDep, principal: PrincipalDep, form: FormDep
) -> Response:
    """Add somebody, and show the link through which they choose their password, this once."""
    with form:
        body = form.validated(UserIn)
        with resources.transaction() as session:
            user = service.create_user(
                session, principal.actor,
                username=body.username, display_name=body.display_name, role=body.role,
            )  # fmt: skip
            user_id, link = user.id, ""
            if body.role is not Role.PEER:
                public_url = resources.settings.public_url
                link = service.password_link(session, principal.actor, user, public_url)
        return _page(request, resources, principal, user_id, link=link, is_new=True)
    return render(request, "user_new.html", form=form, roles=ROLES)


@router.get("/users/{user_id}")
def user(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    user_id: UUID,
    cursor: Cursor = None,
) -> Response:
    """Show one user and, to those who decide, their tokens and sessions."""
    return _page(request, resources, principal, user_id, cursor=cursor)


@router.post("/users/{user_id}")
def change_user(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    user_id: UUID,
) -> Response:
    """Change name or role, disable or enable, or turn one-time passwords off: whatever the form holds."""
    with form:
        wanted = form.tree()
        if "totp" in wanted:
            wanted["totp"] = False
        body = form.validated(UserChange, wanted)
        with resources.transaction() as session:
            service.change_user(
                session, principal.actor, user_id, display_name=body.display_name, role=body.role,
                disabled=body.disabled, without_totp=body.totp is False,
            )  # fmt: skip
        return redirect(f"/users/{user_id}", notice="saved")
    return _page(request, resources, principal, user_id, form=form)


@router.post("/users/{user_id}/password-link")
def make_password_link(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    user_id: UUID,
) -> Response:
    """Show a new link for choosing a password, this once; earlier ones stop working."""
    with form:
        with resources.transaction() as session:
            link = service.password_link(
                session, principal.actor, service.get_user(session, user_id), resources.settings.public_url
            )  # fmt: skip
        return _page(request, resources, principal, user_id, link=link)
    return _page(request, resources, principal, user_id, form=form)


@router.post("/users/{user_id}/tokens")
def make_peers_token(
    request: Request,
    resources: ResourcesDep,
    principal: PrincipalDep,
    form: FormDep,
    user_id: UUID,
) -> Response:
    """Make a token for another hospital and show its text, this once."""
    with form:
        with resources.transaction() as session:
            username = service.get_user(session, user_id).username
            body = form.validated(TokenIn, {**form.tree("scopes"), "username": username})
            _, text = service.issue_token(
                session, principal.actor, service.token_owner(session, principal, body.username),
                name=body.name, scopes=frozenset(body.scopes), days=body.days,
            )  # fmt: skip
        return _page(request, resources, principal, user_id, token=text)
    return _page(request, resources, principal, user_id, form=form, of="token")


@router.post("/users/{user_id}/tokens/{token_id}/revoke")
def revoke_users_token(
    session: SessionDep, principal: PrincipalDep, user_id: UUID, token_id: UUID
) -> Response:
    """Let somebody's token work no more."""
    service.revoke_token(session, principal, token_id)
    return redirect(f"/users/{user_id}", notice="token-revoked")


@router.post("/users/{user_id}/sessions/{session_id}/end")
def end_users_session(
    session: SessionDep, principal: PrincipalDep, user_id: UUID, session_id: UUID
) -> Response:
    """End somebody's session."""
    service.end_session(session, principal, session_id)
    return redirect(f"/users/{user_id}", notice="session-ended")


def _page(
    request: Request,
    resources: Resources,
    principal: Principal,
    user_id: UUID,
    *,
    form: Form | None = None,
    of: str = "user",  # which form
    cursor: str | None = None,
    **shown: Any,
) -> Response:
    with resources.reading() as session:
        found = UserOut.of(service.get_user(session, user_id))
        return render(
            request,
            "user.html",
            form=form or Form.of(display_name=found.display_name, role=found.role.value),
            of=of,
            blank=Form(),
            user=found,
            is_peer=found.role is Role.PEER,
            is_me=found.id == principal.user_id,
            roles=ROLES,
            scopes=[(one, SCOPES[one]) for one in SCOPES if one in role_scopes(found.role)],
            days=PEER_DAYS,
            hours=int(LASTS.total_seconds() // 3600),
            at=now(),
            **_credentials(session, resources, principal, found, cursor),
            **{"link": "", "token": "", "is_new": False, **shown},
        )


def _credentials(
    session: Any, resources: Resources, principal: Principal, user: UserOut, cursor: str | None
) -> dict[str, Any]:
    """Return a user's tokens and sessions for those who may see them."""
    if not may(principal, "pages_revoke_users_token"):
        return {"tokens": (), "sessions": (), "following": None}
    tokens, following = service.list_tokens(
        session, principal, username=user.username, everybody=False, cursor=cursor, limit=FEW
    )
    sessions, _ = service.list_sessions(
        session, principal, resources.settings.session,
        username=user.username, everybody=False, cursor=None, limit=MAX_LIMIT,
    )  # fmt: skip
    return {"tokens": tokens, "sessions": sessions, "following": following}

"""The guard of every route: who is asking, and may they? The answer is in `permissions` and nowhere else."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session
from starlette.routing import BaseRoute

from services.audit import service as audit
from services.audit.actor import ANONYMOUS, Actor
from services.auth import service
from services.auth.permissions import PERMISSIONS, Rule, Scope
from services.auth.principal import Principal
from services.kit.db import READONLY, now
from services.kit.http import SAFE, operation_id, resources_of
from services.kit.problems import ForbiddenError, ServiceError, UnauthorizedError
from services.kit.secrets import same

COOKIE = "ppdd_session"  # `__Host-` is put before it where the node is reached over TLS
CSRF_HEADER = "X-CSRF-Token"


def guard(request: Request) -> Principal | None:
    """Let the request pass or refuse it; refusals of known callers are audited. Installed on every router.

    The caller is looked up in a reading transaction that ends here: SQLite has one writer at a time, and neither a
    body that streams in for an hour nor the record of a refusal may find that place taken.
    """
    rule = rule_of(request.scope["route"])
    principal: Principal | None = None
    try:
        if _brings_credential(request):  # nobody is answered without the database: it may be away
            with resources_of(request).sessions() as session:
                session.connection(execution_options={READONLY: True})
                principal = identify(request, session)
        if rule.roles:
            _permit(principal, rule)
    except ServiceError as refusal:
        _remember(request, principal, refusal)
        raise
    request.state.principal = principal
    return principal


def rule_of(route: BaseRoute) -> Rule:
    """Return the route's row in the table; without one it is refused to everybody."""
    operation = operation_id(route)
    if operation not in PERMISSIONS:
        raise ForbiddenError(f"the operation {operation!r} has no row in the permission table")
    return PERMISSIONS[operation]


def identify(request: Request, session: Session) -> Principal | None:
    """Return who is asking, None for nobody; a credential that is not valid is refused even where none is needed."""
    header = request.headers.get("authorization")
    if header is not None:
        kind, _, token = header.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise UnauthorizedError
        return service.by_token(session, token.strip(), now())
    settings = resources_of(request).settings
    cookie = request.cookies.get(cookie_name(request))
    if cookie is None:
        return None
    try:
        principal, csrf = service.by_cookie(session, cookie, now(), settings.session)
    except UnauthorizedError:
        if rule_of(request.scope["route"]).roles:
            raise
        return None  # somebody whose session has ended may still log in
    if request.method not in SAFE and not same(request.headers.get(CSRF_HEADER, ""), csrf):
        raise ForbiddenError(
            f"a request that changes something must send the session's {CSRF_HEADER}"
        )
    return principal


def cookie_name(request: Request) -> str:
    """Return the session cookie's name: bound to host and TLS where there is TLS."""
    return (
        "__Host-" if resources_of(request).settings.public_url.startswith("https") else ""
    ) + COOKIE


def _brings_credential(request: Request) -> bool:
    return "authorization" in request.headers or cookie_name(request) in request.cookies


def _permit(principal: Principal | None, rule: Rule) -> None:
    if principal is None:
        raise UnauthorizedError
    if principal.role not in rule.roles:
        raise ForbiddenError(f"the role {principal.role} may not do this")
    if principal.scopes is not None and rule.scope not in principal.scopes:
        needed = (
            "a person who is logged in"
            if rule.scope is Scope.ACCOUNT
            else f"a token with the scope {rule.scope}"
        )
        raise ForbiddenError(f"this needs {needed}")


def _remember(request: Request, principal: Principal | None, refusal: ServiceError) -> None:
    """Audit a refusal, in a transaction of its own: the request's is rolled back."""
    if refusal.status not in (401, 403) or (
        principal is None and refusal.status == 401 and not request.headers.get("authorization")
    ):
        return  # somebody without any credential, such as a scanner, is counted by the metrics only
    actor: Actor = principal.actor if principal else ANONYMOUS
    with resources_of(request).sessions.begin() as own:
        audit.record(
            own, actor, "request.refuse", operation_id(request.scope["route"]),
            outcome="refused", detail={"status": refusal.status, "reason": refusal.slug},
        )  # fmt: skip


def _caller(request: Request) -> Principal:
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise UnauthorizedError
    return principal


PrincipalDep = Annotated[Principal, Depends(_caller)]

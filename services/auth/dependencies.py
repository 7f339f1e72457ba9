"""The guard of every route: who is asking, and may they? The answer is in `permissions` and nowhere else."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import structlog
from fastapi import Depends, Request, Response
from sqlalchemy.exc import DBAPIError
from starlette.routing import BaseRoute

from services.audit import service as audit
from services.audit.actor import ANONYMOUS, Actor
from services.auth import service
from services.auth.permissions import PERMISSIONS, Rule, Scope
from services.auth.principal import Principal
from services.auth.throttle import RefusalMeter
from services.kit.db import now
from services.kit.errors import ForbiddenError, ServiceError, UnauthorizedError
from services.kit.http import SAFE, operation_id, resources_of
from services.kit.resources import Resources
from services.kit.secrets import same

COOKIE = "ppdd_session"  # `__Host-` is put before it where the node is reached over TLS
CSRF_HEADER = "X-CSRF-Token"
log = structlog.get_logger(__name__)


def guard(request: Request) -> Principal | None:
    """Let the request pass or refuse it; refusals of known callers are audited. Installed on every router.

    A route with a body asks twice, before it is read and after; the first answer counts.
    The caller is looked up in a reading transaction that ends here: SQLite has one writer at a time, and neither a
    body that streams in for an hour nor the record of a refusal may find that place taken.
    """
    if hasattr(request.state, "principal"):
        known: Principal | None = request.state.principal
        return known
    return ask(request)


def ask(request: Request) -> Principal | None:
    """Look the caller up now, whatever was answered before: an answer that streams for an hour asks again and again."""
    rule = rule_of(request.scope["route"])
    principal: Principal | None = None
    csrf: str | None = None
    try:
        if _brings_credential(request):  # nobody is answered without the database: it may be away
            principal, csrf = _look_up(request, rule)
            if not _is_meant(request, csrf):
                if rule.roles:
                    raise ForbiddenError(
                        f"a request that changes something must send the session's {CSRF_HEADER}"
                    )
                principal = None
        if request.method not in SAFE and "authorization" not in request.headers:
            _require_own_origin(request)
        if rule.roles:
            _permit(principal, rule)
    except ServiceError as refusal:
        _remember(request, principal, refusal)
        raise
    request.state.principal = principal
    request.state.csrf = csrf if principal is not None else None
    return principal


def rule_of(route: BaseRoute) -> Rule:
    """Return the route's row in the table; without one it is refused to everybody."""
    operation = operation_id(route)
    if operation not in PERMISSIONS:
        raise ForbiddenError(f"the operation {operation!r} has no row in the permission table")
    return PERMISSIONS[operation]


def identify(request: Request) -> tuple[Principal, str | None]:
    """Return who is asking and, of a session, what its unsafe requests must send; UnauthorizedError for nobody known.

    A token counts more than a cookie: who sends one means it.
    """
    resources = resources_of(request)
    header = request.headers.get("authorization")
    if header is not None:
        kind, _, token = header.partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise UnauthorizedError
        with resources.reading_engine.connect() as connection:
            return service.by_token(connection, token.strip(), now()), None
    with resources.reading() as session:
        cookie = cookie_of(request) or ""
        return service.by_cookie(session, cookie, now(), resources.settings.session)


def client_address(request: Request) -> str:
    """Return from where the request comes, as far as the server trusts what a proxy says about it."""
    return request.client.host if request.client else "unknown"


def cookie_of(request: Request) -> str | None:
    """Return the session cookie's text."""
    return request.cookies.get(cookie_name(request))


def set_cookie(request: Request, response: Response, text: str) -> None:
    """Give the browser a session: not for scripts, not for other sites, and only over TLS where there is TLS."""
    response.set_cookie(cookie_name(request), text, **_attributes(request))


def clear_cookie(request: Request, response: Response) -> None:
    """Let the browser forget its session."""
    response.delete_cookie(cookie_name(request), **_attributes(request))


def cookie_name(request: Request) -> str:
    """Return the session cookie's name: bound to host and TLS where there is TLS."""
    return ("__Host-" if _over_tls(request) else "") + COOKIE


def _over_tls(request: Request) -> bool:
    return resources_of(request).settings.public_url.startswith("https://")


def _attributes(request: Request) -> dict[str, Any]:
    return {"path": "/", "httponly": True, "samesite": "strict", "secure": _over_tls(request)}


def _brings_credential(request: Request) -> bool:
    return "authorization" in request.headers or cookie_name(request) in request.cookies


def _look_up(request: Request, rule: Rule) -> tuple[Principal | None, str | None]:
    """Return the caller as `identify` does. On routes for anybody, a session that has ended is nobody's.

    A token that is not valid is refused everywhere: who sends one should know.
    """
    resources, at = resources_of(request), now()
    try:
        principal, csrf = identify(request)
    except UnauthorizedError:
        if rule.roles or "authorization" in request.headers:
            raise
        return None, None  # somebody whose session has ended may still log in
    if service.use_is_due(principal, at):
        _note_use(resources, principal, at)
    return principal, csrf


def _is_meant(request: Request, csrf: str | None) -> bool:
    """Whether the session's owner sent this, and not a page that borrows their cookie.

    Scripts send the value in a header; a page's form in a field, which has been read before.
    """
    if csrf is None or request.method in SAFE:
        return True
    in_form: str = getattr(request.state, "csrf_sent", "")
    return same(request.headers.get(CSRF_HEADER) or in_form, csrf)


def _note_use(resources: Resources, principal: Principal, at: datetime) -> None:
    """Remember the use, in a transaction of its own; that it cannot be written is no reason to refuse reading."""
    try:
        with resources.sessions.begin() as session:
            service.note_use(session, principal.credential_id, at)
    except DBAPIError as err:
        log.warning("credential.use-not-noted", error=type(err.orig).__name__)


def _require_own_origin(request: Request) -> None:
    """Refuse what another site's page sends with a browser's cookies. Programs send no Origin."""
    origin = request.headers.get("origin")
    if origin is None:
        return
    public = urlsplit(resources_of(request).settings.public_url)
    host = origin.partition("://")[2].lower()
    if host not in (request.headers.get("host", "").lower(), public.netloc.lower()) or not host:
        raise ForbiddenError("this request comes from a page of another site")


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
    """Audit a refusal, in a transaction of its own.

    Of callers who are known, every one. Of somebody with an invalid credential, few: else the log grows as fast as
    anybody likes. Somebody without any, such as a scanner, is counted by the metrics only.
    """
    if refusal.status not in (401, 403):
        return
    detail: dict[str, Any] = {"status": refusal.status, "reason": refusal.slug}
    actor: Actor = principal.actor if principal else ANONYMOUS
    if principal is None:
        if refusal.status == 401 and not _brings_credential(request):
            return
        address = client_address(request)
        left_out = _meter(request).note(address, time.monotonic())
        if left_out is None:
            return
        detail |= {"address": address, "left_out": left_out}
    with resources_of(request).sessions.begin() as own:
        audit.record(
            own, actor, "request.refuse", operation_id(request.scope["route"]),
            outcome="refused", detail=detail,
        )  # fmt: skip


def _meter(request: Request) -> RefusalMeter:
    meter: RefusalMeter = request.app.state.refusals
    return meter


def principal_of(request: Request) -> Principal:
    """Return whom the guard let pass; UnauthorizedError for nobody."""
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise UnauthorizedError
    return principal


async def _caller(request: Request) -> Principal:
    return principal_of(request)


PrincipalDep = Annotated[Principal, Depends(_caller)]
AddressDep = Annotated[str, Depends(client_address)]

"""Setting up, logging in and out, choosing a password; the reader's language and colours; the files of the pages."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Query, Request, Response

from services.auth import login, service
from services.auth.dependencies import AddressDep, PrincipalDep, clear_cookie, cookie_of, set_cookie
from services.auth.schemas import ChoosePasswordIn, LoginIn, SetupIn
from services.dashboard import assets
from services.dashboard.forms import Form, FormDep
from services.dashboard.language import COOKIE as LANGUAGE_COOKIE
from services.dashboard.language import LANGUAGES
from services.dashboard.rendering import THEME_COOKIE, THEMES, redirect, render
from services.dashboard.route import page_router
from services.kit.errors import BadRequestError
from services.kit.http import ResourcesDep, SessionDep, SettingsDep

router = page_router()
YEAR = 365 * 24 * 3600
Next = Annotated[str, Query(max_length=500)]


@router.get("/login")
def login_page(request: Request, session: SessionDep, next: Next = "/") -> Response:
    """Show the form; to whom there is no account yet, how to make the first one."""
    if request.state.principal is not None:
        return redirect(_own(next))
    return render(
        request, "login.html", form=Form.of(next=_own(next)), set_up=service.has_admin(session)
    )


@router.post("/login")
def log_in(
    request: Request, resources: ResourcesDep, address: AddressDep, form: FormDep
) -> Response:
    """Start a session and go where the reader wanted to be."""
    with form:
        wanted = form.tree()
        after = _own(wanted.pop("next", "/"))
        body = form.validated(LoginIn, wanted)
        signed_in = login.log_in(
            resources, _client(request, address), username=body.username, password=body.password, code=body.code
        )  # fmt: skip
        response = redirect(after)
        set_cookie(request, response, signed_in.cookie)
        return response
    return render(request, "login.html", form=form, set_up=True)


@router.post("/logout")
def log_out(request: Request, session: SessionDep, principal: PrincipalDep) -> Response:
    """End the session."""
    service.end_session(session, principal, "current")
    response = redirect("/login", notice="logged-out")
    clear_cookie(request, response)
    return response


@router.get("/setup")
def setup_page(request: Request, session: SessionDep) -> Response:
    """Show the form behind the link that the node printed; the link's token is in the fragment."""
    return render(request, "setup.html", set_up=service.has_admin(session))


@router.post("/setup")
def set_up(
    request: Request, resources: ResourcesDep, address: AddressDep, form: FormDep
) -> Response:
    """Make the first administrator and log them in."""
    with form:
        body = form.validated(SetupIn)
        signed_in = login.set_up(
            resources, _client(request, address), token=body.token, username=body.username,
            display_name=body.display_name, password=body.password,
        )  # fmt: skip
        response = redirect("/", notice="welcome")
        set_cookie(request, response, signed_in.cookie)
        return response
    return render(request, "setup.html", form=form, set_up=False)


@router.get("/password")
def password_page(request: Request) -> Response:
    """Show the form behind a link for choosing a password."""
    return render(request, "password.html")


@router.post("/password")
def choose_password(request: Request, resources: ResourcesDep, form: FormDep) -> Response:
    """Give the link's user the password that they chose."""
    with form:
        body = form.validated(ChoosePasswordIn)
        login.choose_password(resources, token=body.token, password=body.password)
        return redirect("/login", notice="password-chosen")
    return render(request, "password.html", form=form)


@router.post("/appearance")
def choose_appearance(settings: SettingsDep, form: FormDep) -> Response:
    """Remember language or colours in the reader's browser."""
    response = redirect(_own(form.get("next", "/")))
    for field, cookie, known in (
        ("language", LANGUAGE_COOKIE, LANGUAGES),
        ("theme", THEME_COOKIE, THEMES),
    ):
        chosen = form.get(field)
        if chosen and chosen not in known:
            raise BadRequestError(f"{field} must be one of {', '.join(known)}")
        if chosen:
            response.set_cookie(
                cookie, chosen, max_age=YEAR, path="/", httponly=True, samesite="strict",
                secure=settings.public_url.startswith("https://"),
            )  # fmt: skip
    return response


@router.get("/static/{tag}/{name}")
def static_file(tag: str, name: str) -> Response:
    """Return style sheet or script; a browser keeps it, because its address changes with its bytes."""
    found = assets.asset(tag, name)
    headers = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(found.content, media_type=found.media_type, headers=headers)


@router.get("/favicon.ico")
def favicon() -> Response:
    """Send those who do not read the page's own link to the picture."""
    return redirect(assets.address("mark.svg"))


def _client(request: Request, address: str) -> login.Client:
    return login.Client(
        address=address, user_agent=request.headers.get("user-agent", ""), cookie=cookie_of(request)
    )


def _own(address: str) -> str:
    """Return an address of this node's pages; for any other the start."""
    parts = urlsplit(address)
    is_ours = not parts.scheme and not parts.netloc and address.startswith("/")
    return (
        address
        if is_ours and not address.startswith(("//", "/\\")) and address.isprintable()
        else "/"
    )

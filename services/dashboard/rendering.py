"""From values to a page: the templates, what every page knows, and how numbers and times are written."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ppdd_core import __version__
from services.auth.permissions import PERMISSIONS
from services.auth.principal import Principal
from services.dashboard import assets, charts
from services.dashboard.forms import Form
from services.dashboard.language import LANGUAGES, Translate, language_of, translator
from services.dashboard.notices import NOTICES
from services.kit.http import resources_of

THEMES = ("auto", "light", "dark")
THEME_COOKIE = "ppdd_theme"
# No inline script, no inline style, nothing from elsewhere. `blob:` shows a chosen X-ray before it is sent.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "same-origin",  # with less, a browser does not say that a form comes from here
    "Vary": "Cookie, Accept-Language, HX-Request",
}
# The places of the navigation: address, English words, and the operation that one must be allowed to do.
PLACES = (
    ("/", "Overview", "pages_overview"),
    ("/datasets", "Source datasets", "pages_datasets"),
    ("/jobs", "Jobs", "pages_jobs"),
    ("/packages", "Packages", "pages_packages"),
    ("/detectors", "Detectors", "pages_detectors"),
    ("/audit", "Audit log", "pages_audit"),
    ("/users", "Users", "pages_users"),
    ("/system", "System", "pages_system"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of the navigation."""

    address: str
    words: str
    here: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """What is around every page: who looks at it, in which language, where they may go."""

    site: str
    me: Principal | None
    csrf: str
    language: str
    theme: str
    path: str  # with its query
    places: tuple[Place, ...]
    notice: str
    version: str = __version__

    def can(self, operation: str) -> bool:
        """Whether the reader's role may do an operation at all."""
        return may(self.me, operation)


def may(principal: Principal | None, operation: str) -> bool:
    """Whether a person's role may do an operation at all; whether a thing is theirs is asked elsewhere."""
    return principal is not None and principal.role in PERMISSIONS[operation].roles


def render(
    request: Request,
    template: str,
    *,
    form: Form | None = None,
    status: int | None = None,
    **values: Any,
) -> HTMLResponse:
    """Return a page, or the part of one that a template starting with `_` is. A form decides the status."""
    language = language_of(request)
    translate = translator(language)
    form = form or Form()
    context = {
        "frame": _frame(request, language, translate),
        "t": translate,
        "form": form,
        **values,
    }
    html = _environment().get_template(template).render(context)
    return HTMLResponse(
        html,
        status_code=form.status if status is None else status,
        headers=HEADERS,
    )


def redirect(address: str, *, notice: str = "", **query: str) -> RedirectResponse:
    """Return the answer to a form that was taken: go there, and be told that it was done.

    `notice` is a key of `NOTICES`: what a page says can never come from an address.
    """
    wanted = {**query, **({"done": notice} if notice else {})}
    return RedirectResponse(address + (f"?{urlencode(wanted)}" if wanted else ""), 303)


def is_fragment(request: Request) -> bool:
    """Whether htmx asks for a part of the page that is shown already."""
    return "hx-request" in request.headers


def _frame(request: Request, language: str, translate: Translate) -> Frame:
    me: Principal | None = getattr(request.state, "principal", None)
    path = request.url.path
    return Frame(
        site=resources_of(request).settings.site_title,
        me=me,
        csrf=getattr(request.state, "csrf", None) or "",
        language=language,
        theme=_theme(request),
        path=path + (f"?{request.url.query}" if request.url.query else ""),
        places=tuple(
            Place(address, words, _is_here(path, address))
            for address, words, operation in PLACES
            if may(me, operation)
        ),
        notice=translate(NOTICES.get(request.query_params.get("done", ""), "")),
    )


def _theme(request: Request) -> str:
    theme = request.cookies.get(THEME_COOKIE, "")
    return theme if theme in THEMES else "auto"


def _is_here(path: str, address: str) -> bool:
    return path == address or (address != "/" and path.startswith(f"{address}/"))


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals.update(static=assets.address, charts=charts, languages=LANGUAGES, themes=THEMES)
    made.filters.update(
        moment=moment,
        duration=duration,
        size=size,
        percent=percent,
        number=number,
        slug=slug,
        query=query,
    )
    return made


def moment(at: datetime | str | None, how: str = "time") -> Markup:
    """Return a time in the reader's zone; `how` is "time", "date" or "age". Without scripts it is UTC."""
    if at is None:
        return Markup("–")
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    at = (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC)
    text = at.strftime("%Y-%m-%d" if how == "date" else "%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}" data-show="{}">{}</time>').format(
        at.isoformat(timespec="seconds").replace("+00:00", "Z"), how, text
    )


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: `0.3 s`, `42 s`, `3 min 20 s`, `2 h 05 min`, `12 h`."""
    if seconds is None:
        return "–"
    if 0 < seconds < 0.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "< 0.1 s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small, units = (
        (whole // 60, whole % 60, ("min", "s"))
        if whole < 3600
        else (whole // 3600, whole % 3600 // 60, ("h", "min"))
    )
    return f"{large} {units[0]} {small:02d} {units[1]}" if small else f"{large} {units[0]}"


def size(count: float | None) -> str:
    """Return bytes as people say them."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share of one in per cent."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with thousands, or with few digits where it is no whole one."""
    if value is None:
        return "–"
    if isinstance(value, int) or value == int(value):
        return f"{int(value):,}"
    return f"{value:,.{digits}g}" if abs(value) < 1 else f"{value:,.{digits}f}"


def slug(text: str) -> str:
    """Return an id for an element, from any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"


def query(values: Mapping[str, object]) -> str:
    """Return a query with what is not empty."""
    return urlencode(
        {name: str(value) for name, value in values.items() if value not in (None, "")}
    )

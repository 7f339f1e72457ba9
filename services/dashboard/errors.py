"""Problems of pages: shown as pages, and who is not logged in is sent to log in."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from services.dashboard.rendering import is_fragment, render
from services.dashboard.route import PageRoute
from services.kit.problems import MEDIA_TYPE

LOGIN = "/login"


def register(app: FastAPI) -> None:
    """Let the problems of pages be pages. After `problems.register`, whose answers these are made of."""
    for kind, handler in list(app.exception_handlers.items()):
        app.exception_handlers[kind] = _as_page(handler)


def _as_page(handler: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Request, error: Exception) -> Response:
        found = handler(request, error)
        response: Response = await found if inspect.isawaitable(found) else found
        return _page(request, response) if _is_for_people(request, response) else response

    return answer


def _is_for_people(request: Request, response: Response) -> bool:
    """Whether a browser shows the answer: of a page, or of an address where there is nothing."""
    if response.media_type != MEDIA_TYPE:
        return False
    route = request.scope.get("route")
    if route is not None and not isinstance(route, PageRoute):
        return False
    return isinstance(route, PageRoute) or (
        "text/html" in request.headers.get("accept", "")
        and not request.url.path.startswith("/api/")
    )


def _page(request: Request, response: Response) -> Response:
    if response.status_code == 401:
        return _to_login(request)
    problem = json.loads(bytes(response.body))
    page = render(request, "problem.html", status=response.status_code, problem=problem)
    for name in ("retry-after", "allow"):
        if name in response.headers:
            page.headers[name] = response.headers[name]
    return page


def _to_login(request: Request) -> Response:
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    address = LOGIN
    if request.method == "GET" and wanted != "/" and not is_fragment(request):
        address += f"?next={quote(wanted, safe='/')}"
    if is_fragment(request):  # the part cannot be had: the whole page goes
        return Response(status_code=204, headers={"HX-Redirect": address})
    return RedirectResponse(address, 303)

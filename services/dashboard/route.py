"""What makes a route a page: its guard, its form, and that its errors are pages too."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse

from services.auth.dependencies import guard
from services.dashboard.forms import read_form
from services.kit.http import ThreadRoute


class PageRoute(ThreadRoute):
    """A route for people in a browser: who is not logged in is sent to log in, and problems are shown as pages."""


def page_router(**given: Any) -> APIRouter:
    """Return a router of pages. Their operations are `pages_<function name>` in the permission table."""
    return APIRouter(
        tags=["pages"],
        route_class=PageRoute,
        default_response_class=HTMLResponse,
        include_in_schema=False,
        dependencies=[
            Depends(read_form),
            Depends(guard),
        ],  # the guard looks for the form's CSRF token
        **given,
    )

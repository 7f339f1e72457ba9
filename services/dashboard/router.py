"""All pages, in the order of the navigation."""

from __future__ import annotations

from fastapi import APIRouter

from services.dashboard.pages import overview, patterns, signing_in

router = APIRouter()
for group in (signing_in, overview, patterns):
    router.routes.extend(group.router.routes)

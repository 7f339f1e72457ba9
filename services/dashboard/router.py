"""All pages, in the order of the navigation."""

from __future__ import annotations

from services.dashboard.pages import overview, patterns, signing_in
from services.dashboard.route import page_router

router = page_router()
for group in (signing_in, overview, patterns):
    router.routes.extend(group.router.routes)

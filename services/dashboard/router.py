"""All pages, in the order of the navigation."""

from __future__ import annotations

from fastapi import APIRouter

from services.dashboard.pages import (
    account,
    audit,
    datasets,
    detectors,
    distil,
    jobs,
    overview,
    packages,
    patterns,
    pulls,
    signing_in,
    system,
    users,
)

router = APIRouter()
for group in (
    signing_in,
    account,
    overview,
    datasets,
    distil,
    jobs,
    packages,
    pulls,
    detectors,
    audit,
    users,
    system,
    patterns,
):
    router.routes.extend(group.router.routes)

"""Errors that jobs and their parts share."""

from __future__ import annotations

from services.kit.errors import ConflictError


class LostJobError(ConflictError):
    """Somebody else holds the job now: its lease ran out, or it was cancelled."""

    slug, title = "job-lost", "The job belongs to another worker now"


class LostPartError(LostJobError):
    """Somebody else holds the part now."""

    slug, title = "part-lost", "The part of the job belongs to another worker now"

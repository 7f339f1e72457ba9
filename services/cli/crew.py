"""Worker processes beside the API of an embedded node: started, started again when they die, stopped softly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a worker that died is started again
STEADY = 60.0  # seconds a worker lives before it counts as healthy again
log = structlog.get_logger(__name__)


@dataclass
class _Member:
    process: subprocess.Popen[bytes]
    started: float
    wait: float = FIRST_WAIT
    again_at: float | None = None


class Crew:
    """Some workers. All methods are called from one thread, which outlives them: they die with it."""

    def __init__(self, size: int, environ: Mapping[str, str]) -> None:
        self.environ = dict(environ)
        self.members = [_Member(self._start(), time.monotonic()) for _ in range(size)]

    def look_after(self) -> None:
        """Start those again that died, each after a wait that doubles while it keeps dying."""
        now = time.monotonic()
        for member in self.members:
            if member.again_at is not None:
                if now >= member.again_at:
                    member.process, member.started, member.again_at = self._start(), now, None
            elif (code := member.process.poll()) is not None:
                steady = now - member.started >= STEADY
                member.wait = FIRST_WAIT if steady else min(member.wait * 2, LONGEST_WAIT)
                member.again_at = now + member.wait
                log.warning("worker.died", exit_code=code, again_in_seconds=member.wait)

    def ask_to_stop(self) -> None:
        """Let every worker give its job back, with what it has so far."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End every worker at once; its job is taken up again when its lease runs out."""
        self._signal(signal.SIGKILL)

    def gone(self) -> bool:
        """Tell whether no worker is left."""
        return all(member.process.poll() is not None for member in self.members)

    def _signal(self, number: signal.Signals) -> None:
        for member in self.members:
            if member.process.poll() is None:
                member.process.send_signal(number)

    def _start(self) -> subprocess.Popen[bytes]:
        tie = [sys.executable, "-m", "services.cli.tied", str(os.getpid())]
        return subprocess.Popen(  # noqa: S603 - our own program
            [*tie, sys.executable, "-m", "worker"],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C at the terminal reaches us alone; we decide how workers stop
        )

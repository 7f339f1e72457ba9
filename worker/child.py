"""A job's process seen from outside: started in a session of its own, asked, ended with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

TICK = 0.1  # seconds between two looks


class Child:
    """One `python -m worker.run …`; its output is a pipe of lines."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own module, with ids
            [sys.executable, "-m", "worker.run", "--parent", str(os.getpid()), *arguments],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.output: IO[bytes] = self._process.stdout

    @property
    def pid(self) -> int:
        """Its process id, and that of its group."""
        return self._process.pid

    def ended(self) -> bool:
        """Wait a moment and return whether it has ended; it is not reaped, so its id stays its own."""
        left = os.WEXITED | os.WNOHANG | os.WNOWAIT
        if os.waitid(os.P_PID, self.pid, left) is not None:
            return True
        time.sleep(TICK)
        return False

    def ask(self) -> None:
        """Ask it to save what it has and leave. Only itself: what it started, it ends in order."""
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """End what it left behind and return its exit code; minus the signal's number where one ended it."""
        self.kill()
        code = self._process.wait()
        self.output.close()
        return code

"""What a job's process prints, kept as log lines of the job: in batches, bounded, without secrets."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from services.jobs.service import MAX_LINE
from services.kit.db import Sessions
from services.kit.logging import scrub

FLUSH_SECONDS = 1.0
RETRY_SECONDS = 0.2  # at the end, while the database does not answer
MOST_WAITING = 2_000  # lines kept while the database does not answer

AddLines = Callable[[Session, list[str]], None]


class JobLog:
    """Two threads: one reads lines, one writes them. A slow database holds up neither the job nor its supervisor."""

    def __init__(self, sessions: Sessions, add: AddLines, output: IO[bytes]) -> None:
        self._sessions, self._add, self._output = sessions, add, output
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._lock = threading.Lock()
        self._ended, self._until = threading.Event(), 0.0
        self._reader = threading.Thread(target=self._read, name="job-output", daemon=True)
        self._writer = threading.Thread(target=self._write, name="job-log", daemon=True)
        self._reader.start()
        self._writer.start()

    def close(self, seconds: float) -> None:
        """Write what is left, for at most so long."""
        self._reader.join(seconds / 2)
        self._until = time.monotonic() + seconds / 2
        self._ended.set()
        self._writer.join(seconds / 2)

    def _read(self) -> None:
        while line := self._output.readline(4 * MAX_LINE):
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            text = str(scrub(None, "", {"text": text})["text"])
            with self._lock:
                if len(self._lines) < MOST_WAITING:
                    self._lines.append(text[:MAX_LINE])
                else:
                    self._left_out += 1

    def _write(self) -> None:
        while not self._ended.wait(FLUSH_SECONDS):
            self._flush()
        while not self._flush() and time.monotonic() < self._until:
            time.sleep(RETRY_SECONDS)

    def _flush(self) -> bool:
        """Return whether nothing is left."""
        with self._lock:
            lines, left_out = list(self._lines), self._left_out
        if not lines:
            return True
        more = [f"({left_out} lines were left out here)"] if left_out else []
        try:
            with self._sessions.begin() as session:
                self._add(session, lines + more)
        except DBAPIError:
            return False  # they wait for the next time
        with self._lock:
            for _ in lines:
                self._lines.popleft()
            self._left_out -= left_out
        return True

"""Messages as files in a folder: kombu's transport of that kind, with what it lacks to survive a kill.

There a message is seen before it is written, and one that cannot be read ends the worker. Here it is moved into place
whole, and whatever is no message is dropped: the reconciler rings again.
"""

from __future__ import annotations

import time
from pathlib import Path
from queue import Empty
from typing import Any
from uuid import uuid4

import structlog
from kombu.transport import TRANSPORT_ALIASES, filesystem
from kombu.utils.json import dumps, loads

SCHEME = "ppdd-folder"
TRANSPORT_ALIASES[SCHEME] = f"{__name__}:Transport"
log = structlog.get_logger(__name__)


class Channel(filesystem.Channel):
    """One connection's view of the folder."""

    def _put(self, queue: str, payload: Any, **_: Any) -> None:  # type: ignore[override]
        folder = Path(self.data_folder_out)
        written = folder / f".{uuid4()}"
        written.write_text(dumps(payload), encoding="utf-8")  # type: ignore[no-untyped-call]
        written.rename(folder / f"{time.time_ns():020d}_{uuid4()}.{queue}.msg")

    def _get(self, queue: str, timeout: float | None = None) -> Any:
        """Return the oldest message of the queue; Empty if there is none."""
        del timeout
        for file in sorted(Path(self.data_folder_in).glob(f"*_*.{queue}.msg")):
            taken = Path(self.processed_folder) / file.name
            try:
                file.rename(taken)
            except FileNotFoundError:  # another worker was faster
                continue
            text = taken.read_bytes()
            taken.unlink()
            if (message := _message(text)) is not None:
                return message
            log.warning("message.ignored", reason="it is none")
        raise Empty

    def get_table(self, exchange: str) -> Any:
        """Return which queues there are; none where the file is damaged, until a worker binds its own again."""
        try:
            return super().get_table(exchange)  # type: ignore[no-untyped-call]
        except ValueError:
            return []

    def _queue_bind(self, exchange: str, *arguments: Any) -> None:
        try:
            super()._queue_bind(exchange, *arguments)  # type: ignore[no-untyped-call]
        except ValueError:  # left half written by a process that was killed
            self._exchange_file(exchange).unlink(missing_ok=True)  # type: ignore[no-untyped-call]
            super()._queue_bind(exchange, *arguments)  # type: ignore[no-untyped-call]


def _message(text: bytes) -> Any:
    """Return the message, None where it is not what this transport writes."""
    try:
        value = loads(text.decode())  # type: ignore[no-untyped-call]
        return value if value["properties"]["delivery_tag"] else None
    except (ValueError, LookupError, TypeError):
        return None


class Transport(filesystem.Transport):
    """The same transport with these channels."""

    Channel = Channel

"""Log lines on standard error: one per state change, with ids and numbers as fields.

Never in a line: tokens, passwords, file names or ids of patients, image content. `scrub` is the last guard.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog

from services.settings import LogSettings

_SECRET_NAMES = re.compile(
    r"token|password|secret|authorization|cookie|totp|patient", re.IGNORECASE
)
_SECRET_TEXT = re.compile(
    r"ppdd_[A-Za-z0-9_-]{8,}|(?<=Bearer )\S+|(?<=X-Amz-Signature=)[0-9a-f]+|(?<=://)[^/\s@]+(?=@)"
)


def configure(settings: LogSettings) -> None:
    """Let structlog and the standard library write the same lines."""
    watched = settings.format == "text" and sys.stderr.isatty()  # by a person, who has a clock
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if watched else "iso", utc=not watched),
        structlog.processors.format_exc_info,
        scrub,
    ]
    level = getattr(logging, settings.level.upper())
    render = (
        structlog.processors.JSONRenderer()
        if settings.format == "json"
        else structlog.dev.ConsoleRenderer(colors=watched)
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error", "celery", "alembic"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)  # ours decides, whatever the program has set before
        logger.propagate = True
    if level > logging.DEBUG:
        # What they do well needs no line: ours say that the node is up, moved its tables, or fetched a package.
        for name in ("alembic", "uvicorn", "httpx2"):
            logging.getLogger(name).setLevel(max(level, logging.WARNING))
    # Requests are counted by the metrics and, where they matter, audited; a line each would hold addresses.
    logging.getLogger("uvicorn.access").disabled = True


def scrub(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Blank fields that are secrets by name, and secrets inside any text, however deep."""
    for name, value in event.items():
        event[name] = _scrubbed(name, value)
    return event


def _scrubbed(name: str, value: Any) -> Any:
    if _SECRET_NAMES.search(name):
        return "[hidden]"
    if isinstance(value, str):
        return _SECRET_TEXT.sub("[hidden]", value)
    if isinstance(value, Mapping):
        return {key: _scrubbed(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed("", inner) for inner in value]
    return value

"""Style sheet, scripts and picture of the site: few files, under addresses that change with their bytes."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from services.kit.errors import NotFoundError

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is served."""

    content: bytes
    media_type: str
    tag: str  # of its bytes


def address(name: str) -> str:
    """Return where a file is served; it may be kept for ever."""
    return f"/static/{_assets()[name].tag}/{name}"


def asset(tag: str, name: str) -> Asset:
    """Return a file; NotFoundError without it, or where its bytes are other ones by now."""
    found = _assets().get(name)
    if found is None or found.tag != tag:
        raise NotFoundError("there is no such file; load the page again")
    return found


@functools.cache
def _assets() -> dict[str, Asset]:
    return {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    return Asset(content, TYPES[path.suffix], hashlib.sha256(content).hexdigest()[:16])

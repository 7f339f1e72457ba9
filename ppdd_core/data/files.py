"""Files that are there whole or not at all, and the folder where this machine's own things lie. Torch-free."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def ppdd_home() -> Path:
    """Return `$PPDD_HOME`, or `~/.local/share/ppdd`: cache, keys, imported packages."""
    given = os.environ.get("PPDD_HOME")
    return Path(given) if given else Path.home() / ".local/share/ppdd"


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it, flushed to disk before it gets its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def json_bytes(value: Any) -> bytes:
    """Return `value` as indented JSON with sorted keys: the same value gives the same bytes; NaN is refused."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def json_digest(value: Any) -> str:
    """Return the SHA-256 of `value` as `json_bytes` writes it."""
    return hashlib.sha256(json_bytes(value)).hexdigest()

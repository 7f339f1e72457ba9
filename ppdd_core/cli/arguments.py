"""Arguments that several commands take: the seed, a signer's key, a place to write; and how a path is shown.

What only one command takes is checked in that command's module. Torch-free.
"""

from __future__ import annotations

import os
from pathlib import Path

from ppdd_core.errors import BadConfigError, SignatureError
from ppdd_core.package.signature import parse_fingerprint

MAX_SEED = 2**31 - 1  # as in a recipe


def checked_seed(seed: int) -> int:
    """Return `seed` where a recipe could carry it too; BadConfigError outside 0 to MAX_SEED."""
    if not 0 <= seed <= MAX_SEED:
        raise BadConfigError(f"--seed must be from 0 to {MAX_SEED}, got {seed}")
    return seed


def checked_key(text: str | None) -> str | None:
    """Return the fingerprint a person typed after --key; BadConfigError where it cannot be one."""
    if text is None:
        return None
    try:
        return parse_fingerprint(text)
    except SignatureError as err:
        raise BadConfigError(f"--key: {err}") from None


def in_the_way(path: Path) -> Path | None:
    """Return what keeps `path` from being made: a file, or a link to nowhere, where a folder must be."""
    above = next(one for one in path.absolute().parents if os.path.lexists(one))
    return None if above.is_dir() else above


def readable(path: Path) -> str:
    """Return the path as text that JSON and every terminal can carry; bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

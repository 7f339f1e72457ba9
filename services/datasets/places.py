"""Data roots: what lies in them, and finding a dataset below one without ever leaving it.

What lies outside the roots is not told: a path that leads there gets the same answer whether something is there or not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from ppdd_core.data.names import safe_name
from ppdd_core.errors import UnsafeSourceError
from services.kit.errors import UnprocessableError

MAX_SCANNED = 20_000  # directory entries looked at per root
MAX_LISTED = 500  # of them named
ITSELF = "."  # the path of a root that is a dataset itself
KINDS = {".zip": "zip", ".csv": "csv"}


class UnknownPathError(UnprocessableError):
    """There is no dataset at this path below the data roots."""

    slug, title = "unknown-path", "There is no dataset at this path"


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something below a root that could be registered: its path there, and whether folder, zip or csv."""

    path: str
    kind: str


@dataclass(frozen=True, slots=True)
class Root:
    """One data root. `more`: not all of its candidates are listed."""

    number: int
    name: str
    available: bool
    candidates: tuple[Candidate, ...]
    more: bool


def list_roots(roots: Sequence[Path]) -> list[Root]:
    """Return every root with what lies directly below it and could be a dataset, by name."""
    return [_list_root(number, root) for number, root in enumerate(roots)]


def find(roots: Sequence[Path], path: str, *, number: int | None = None) -> Path:
    """Return the real path of a folder, ZIP or CSV manifest below a root.

    `path` is relative to root `number` (to the first root that has it, where None), or absolute below a root; `.` is
    a root itself. UnknownPathError where there is none, and for whatever lies outside, links out of a root included;
    UnsafeSourceError for a path with `..` and the like.
    """
    chosen = roots if number is None else roots[number : number + 1]
    for root in chosen:
        inside = _below(root, path)
        found = None if inside is None else _resolve(root, inside)
        if found is not None:
            return found
    raise UnknownPathError(
        "no data root holds a folder, ZIP or CSV manifest at this path; "
        "GET /api/v1/datasets/roots lists what can be registered"
    )


def _below(root: Path, path: str) -> str | None:
    """Return the path relative to the root, None where it is below another place; nothing is looked up."""
    if not path.startswith("/"):
        inside = path.rstrip("/")
        return inside if inside == ITSELF else safe_name(inside, where="the request")
    for base in (root.absolute(), Path(os.path.realpath(root))):
        asked = PurePosixPath(path)
        if asked.is_relative_to(base):
            inside = str(asked.relative_to(base))
            return inside if inside == ITSELF else safe_name(inside, where="the request")
    return None


def _resolve(root: Path, inside: str) -> Path | None:
    """Return what is really there, None where that is nothing usable or not below the root."""
    try:
        base = Path(os.path.realpath(root, strict=True))
        found = Path(os.path.realpath(base / inside, strict=True))
        if not found.is_relative_to(base) or _kind(found) is None:
            return None
    except (OSError, ValueError):
        return None
    return found


def _kind(path: Path) -> str | None:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        return "folder"
    return KINDS.get(path.suffix.lower()) if stat.S_ISREG(mode) else None


def _list_root(number: int, root: Path) -> Root:
    name = root.name or "/"
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in islice(entries, MAX_SCANNED + 1)]
    except OSError:
        return Root(number, name, available=False, candidates=(), more=False)
    more = len(names) > MAX_SCANNED
    candidates: list[Candidate] = []
    for one in sorted(names[:MAX_SCANNED]):
        if len(candidates) == MAX_LISTED:
            more = True
            break
        if (kind := _candidate(root, one)) is not None:
            candidates.append(Candidate(one, kind))
    return Root(number, name, available=True, candidates=tuple(candidates), more=more)


def _candidate(root: Path, name: str) -> str | None:
    if name.startswith("."):
        return None
    try:
        found = _resolve(root, safe_name(name, where="a data root"))
        return None if found is None else _kind(found)
    except (UnsafeSourceError, OSError):
        return None

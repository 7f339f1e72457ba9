"""The folder of a run: whose it is, what it holds already, and that one process at a time works in it. Torch-free.

What is computed is in `pipeline`; here is only what makes it safe to stop and to go on.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.errors import BadConfigError, CheckpointError, Interrupted

LATEST = 253402300799  # the last second of the year 9999


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, made if need be, for this process alone; the lock ends with its process, however it ends.

    A folder that another process works in raises CheckpointError; a path that cannot be one BadConfigError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadConfigError(f"{folder} must be a folder; it is not, or lies in a file") from None
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process works in {folder}; wait for it, or choose another folder"
            ) from None
        yield


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Hold `out` as `locked` does, and turn Ctrl-C into Interrupted, which says how to go on."""
    with locked(out):
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; what was finished is kept in {out}. Run the same command again to go on from there"
            ) from None


def claim(out: Path, record: Mapping[str, Any], *, created: str | None) -> str:
    """Write run.json, or compare with the one there; return the time of the first start.

    A folder whose run differs in anything raises CheckpointError, which names what differs.
    """
    path = out / "run.json"
    if not path.exists():
        now = created or _now()
        write_atomically(path, json_bytes({**record, "created": now}))
        return now
    known = read_json(path)
    first = str(known.pop("created", ""))
    different = sorted(name for name in record if record[name] != known.get(name))
    if created not in (None, first):
        different.append("created")
    if different:
        raise CheckpointError(
            f"{out} holds a run with other {', '.join(different).replace('_', ' ')}; "
            "choose another --out, or repeat the command it was started with"
        )
    return first


def belongs(path: Path, digest: str, *, what: str) -> None:
    """Tie the folder of `path` to what decides its content; CheckpointError if it is tied to something else."""
    if not path.exists():
        write_atomically(path, json_bytes({"digest": digest}))
    elif read_json(path).get("digest") != digest:
        raise CheckpointError(f"{path.parent} holds {what}; choose another folder")


def kept(path: Path, of: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the report in `path` if it is one of `of` (a digest); else make it by `work` and write it there."""
    if path.exists():
        known = read_json(path)
        if known.get("of") == of:
            return dict(known["report"])
    report = work()
    write_atomically(path, json_bytes({"of": of, "report": report}))
    # as it will be read the next time: a tuple has become a list
    return dict(json.loads(json_bytes(report)))


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file this program wrote; a damaged one raises CheckpointError."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged; delete it and run again")
    return value


def _now() -> str:
    """Return the time now, or SOURCE_DATE_EPOCH where that is set (reproducible builds)."""
    stamp = os.environ.get("SOURCE_DATE_EPOCH")
    if stamp is not None and not (re.fullmatch(r"\d{1,12}", stamp) and int(stamp) <= LATEST):
        raise BadConfigError(f"SOURCE_DATE_EPOCH must be seconds since 1970, got {stamp!r}")
    moment = datetime.fromtimestamp(int(stamp), UTC) if stamp else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")

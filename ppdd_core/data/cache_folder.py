"""The folder of decoded images: its entries' locks, entries under construction, and making room.

An entry is a folder named by 64 digits. Whoever uses one holds a shared lock on it, as long as the process lives or
until it is let go; who makes or removes one holds it alone. Nothing here knows what an entry holds, and nothing but
the standard library is imported: a process may make room that never looks at an image.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUILDING = "building-"


def make_room(cache_dir: Path, *, most_bytes: int, keep_free: int = 0) -> int:
    """Remove entries until they have `most_bytes` at most, and `keep_free` bytes of the disk are free.

    Those unused for longest go first; one that any process holds stays. Returns how many bytes were removed.
    """
    cache_dir = cache_dir / "images"
    found = sorted(_unused_for_longest(cache_dir))
    total, removed = sum(size for _, size, _ in found), 0
    gone = set()
    for _, size, entry in found:
        enough = total <= most_bytes and shutil.disk_usage(cache_dir).free >= keep_free
        if enough:
            break
        if _remove_unused(entry):
            gone.add(entry.name)
            total, removed = total - size, removed + size
    for seen in (cache_dir / "seen").glob("?" * 64) if gone else ():  # not what is being written
        if read_seen(seen) in gone:
            seen.unlink(missing_ok=True)
    return removed


@contextmanager
def building_folder(cache_dir: Path) -> Iterator[tuple[Path, int]]:
    """Yield a fresh folder that is locked while its maker lives, and the lock, after sweeping up dead makers'."""
    for left in cache_dir.glob(f"{BUILDING}*"):
        with suppress(OSError):  # BlockingIOError: its maker lives
            descriptor = lock(left, fcntl.LOCK_NB | fcntl.LOCK_EX)
            shutil.rmtree(left, ignore_errors=True)
            os.close(descriptor)
    folder, descriptor = _claim(cache_dir)
    try:
        yield folder, descriptor
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def lock(folder: Path, how: int) -> int:
    """Return the descriptor of the folder, locked as `fcntl.flock` says; closing it lets the lock go."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def is_still(entry: Path, descriptor: int) -> bool:
    """Whether the folder that was locked is the one that bears the name now."""
    try:
        return os.path.samestat(entry.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def read_seen(path: Path) -> str | None:
    """Return the key that a file in `seen/` holds, or None where it is gone or holds none."""
    try:
        key = path.read_bytes().decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    return key if len(key) == 64 and set(key) <= set("0123456789abcdef") else None


def _unused_for_longest(cache_dir: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield (time of the last use, bytes, folder) of every entry."""
    for entry in cache_dir.glob("?" * 64):
        with suppress(OSError):  # somebody else removed it, or it is not ours to look at
            yield entry.stat().st_mtime, sum(file.stat().st_size for file in entry.iterdir()), entry


def _remove_unused(entry: Path) -> bool:
    try:
        descriptor = lock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # BlockingIOError: in use
        return False
    try:
        if not is_still(entry, descriptor):
            return False
        with building_folder(entry.parent) as (folder, _):
            entry.rename(folder / "unused")  # whole, so that nobody finds half of it
        return True
    except OSError:
        return False  # not ours to change
    finally:
        os.close(descriptor)


def _claim(cache_dir: Path) -> tuple[Path, int]:
    while True:  # a sweeper may come between making the folder and locking it
        folder = Path(tempfile.mkdtemp(prefix=BUILDING, dir=cache_dir))
        with suppress(FileNotFoundError):
            descriptor = lock(folder, fcntl.LOCK_EX)
            if folder.exists() and os.fstat(descriptor).st_ino == folder.stat().st_ino:
                return folder, descriptor
            os.close(descriptor)

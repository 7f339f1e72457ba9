"""Objects as files of a folder: `ab/cd/<sha256>`. A file has its name only once all its bytes are on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from services.kit.storage import (
    CHUNK,
    DIGEST,
    ObjectDamagedError,
    ObjectMissingError,
    Stored,
    StoreError,
    disk_failure,
    pieces,
    require_digest,
    span,
    verified,
    write_whole,
)

INCOMING = "incoming"  # files that have no name yet
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe must not hang us


class FolderStore:
    """The ObjectStore of an embedded node. The folder is made, for its owner alone, by the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put_file(self, path: Path, sha256: str) -> None:
        """Store the file's bytes; ObjectDamagedError if they are not those of `sha256`."""
        require_digest(sha256)
        with _failing("storing an object"), path.open("rb") as file:
            if self._renew(sha256, os.fstat(file.fileno()).st_size):
                for _ in verified(pieces(file), sha256):
                    pass  # only to know that the caller's bytes are the right ones
            else:
                self._write(pieces(file), sha256)

    def put(self, data: bytes) -> str:
        """Store small bytes and return their digest."""
        sha256 = hashlib.sha256(data).hexdigest()
        with _failing("storing an object"):
            if not self._renew(sha256, len(data)):
                self._write([data], sha256)
        return sha256

    def size(self, sha256: str) -> int:
        """Return the size in bytes; ObjectMissingError if there is none."""
        path = self._path(sha256)
        with _failing("looking for an object"):
            try:
                found = path.lstat()
            except (FileNotFoundError, NotADirectoryError):
                raise _missing(sha256) from None
        if not stat.S_ISREG(found.st_mode):
            raise ObjectDamagedError(f"object {sha256[:12]}… is not a plain file")
        return found.st_size

    def read(self, sha256: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start`; verified where they are read whole."""
        size = self.size(sha256)
        first, count = span(size, start, length)
        found = self._pieces(sha256, first, count)
        return verified(found, sha256) if count == size else found

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to `path`, whole and verified or not at all."""
        write_whole(self.read(sha256), path)

    def delete(self, sha256: str) -> None:
        """Remove the object; one that is not there is no error."""
        path = self._path(sha256)
        with _failing("removing an object"):
            path.unlink(missing_ok=True)

    def list(self) -> Iterator[Stored]:
        """Yield every object; files that are none are passed over."""
        with _failing("listing the objects"):
            for path in self.root.glob("[0-9a-f][0-9a-f]/[0-9a-f][0-9a-f]/*"):
                if not DIGEST.fullmatch(path.name):
                    continue
                try:
                    found = path.lstat()
                except FileNotFoundError:  # removed meanwhile
                    continue
                if stat.S_ISREG(found.st_mode):
                    yield Stored(
                        path.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC)
                    )

    def drop_unfinished(self, before: datetime) -> None:
        """Remove files that a write, broken off before that moment, left without a name."""
        with _failing("tidying up the store"):
            for path in (self.root / INCOMING).glob("*"):
                with contextlib.suppress(FileNotFoundError):  # it has its name by now
                    if path.lstat().st_mtime < before.timestamp():
                        path.unlink()

    def check(self) -> None:
        """Raise StoreError if nothing can be written and read now."""
        probe = secrets.token_bytes(16)
        with _failing("trying out the store"):
            path = self._new_file([probe])
            try:
                read = path.read_bytes()
            finally:
                path.unlink(missing_ok=True)
        if read != probe:
            raise StoreError("the object store gives back other bytes than were written")

    def check_private(self) -> None:
        """Raise StoreError if other accounts of the machine may enter the folder."""
        with _failing("looking at the store"):
            mode = self.root.stat().st_mode
        if mode & 0o077:
            raise StoreError(
                f"others may enter the object store: chmod 700 {self.root} (its mode is {stat.S_IMODE(mode):o})"
            )

    def _path(self, sha256: str) -> Path:
        require_digest(sha256)
        return self.root / sha256[:2] / sha256[2:4] / sha256

    def _renew(self, sha256: str, size: int) -> bool:
        """Set the time of an object that is there whole; say whether it is."""
        path = self._path(sha256)
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != size:
                return False
            os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _write(self, data: Iterable[bytes], sha256: str) -> None:
        aside = self._new_file(verified(data, sha256))
        try:
            path = self._path(sha256)
            self._make_folder(path.parent)
            aside.replace(path)
            _flush_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def _new_file(self, data: Iterable[bytes]) -> Path:
        folder = self.root / INCOMING
        self._make_folder(folder)
        path = folder / secrets.token_hex(16)
        try:
            with os.fdopen(os.open(path, _NEW, 0o600), "wb") as file:
                file.writelines(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder != self.root:
            self._make_folder(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
            _flush_folder(folder.parent)
        else:
            folder.mkdir(mode=0o700, exist_ok=True, parents=True)

    def _pieces(self, sha256: str, start: int, count: int) -> Iterator[bytes]:
        with _failing("reading an object"):
            try:
                descriptor = os.open(self._path(sha256), _READ)
            except FileNotFoundError:
                raise _missing(sha256) from None
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                file.seek(start)
                while count > 0:
                    piece = file.read(min(CHUNK, count))
                    if not piece:
                        raise ObjectDamagedError(f"object {sha256[:12]}… ends too early")
                    count -= len(piece)
                    yield piece


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _missing(sha256: str) -> ObjectMissingError:
    return ObjectMissingError(f"there is no object {sha256[:12]}… in the store")


@contextmanager
def _failing(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise disk_failure(err, doing) from err

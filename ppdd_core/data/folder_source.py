"""A folder on disk as a source of files: what is in it, and reading without leaving it.

Which of its files are images of which class is decided in `sources.py`.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ppdd_core.data.names import safe_name, shown
from ppdd_core.errors import BadImageError, SourceError, UnsafeSourceError

MAX_FILE_BYTES = 256 * 2**20
MAX_FILES = 2_000_000

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for its writer
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass
class FolderSource:
    """Files under one root; no link is followed out of it. Holds the root open until `close`."""

    root: Path
    _root_fd: int = -1

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self._root_fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Release the folder."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def contents(self) -> tuple[list[str], list[str], dict[str, int]]:
        """Return the names of files, the names of folders (both sorted), and what was passed over.

        Hidden names are passed over, as are linked folders, devices and names that are no text.
        Raises UnsafeSourceError for a link that leads out of the root.
        """
        files: list[str] = []
        folders: list[str] = []
        passed: dict[str, int] = {}
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for entry in self._scan(folder):
                kind = self._kind(entry, f"{folder}{entry.name}")
                if kind == "folder":
                    folders.append(f"{folder}{entry.name}")
                    waiting.append(f"{folder}{entry.name}/")
                elif kind == "file":
                    files.append(f"{folder}{entry.name}")
                else:
                    passed[kind] = passed.get(kind, 0) + 1
            if len(files) > MAX_FILES:
                raise UnsafeSourceError(
                    f"{shown(str(self.root))} has more than {MAX_FILES:,} files"
                )
        return sorted(files), sorted(folders), passed

    def read(self, name: str) -> bytes:
        """Return the bytes of one file; BadImageError when it is missing, special or too large."""
        try:
            try:
                descriptor = self._open(name)
            except OSError as fault:
                if fault.errno not in {errno.ELOOP, errno.ENOTDIR}:
                    raise
                descriptor = self._open(self._target(name))  # through a link, if it stays inside
        except OSError as fault:
            raise BadImageError(f"{shown(name)} cannot be opened: {fault.strerror}") from None
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise BadImageError(f"{shown(name)} is not a regular file")
            if facts.st_size > MAX_FILE_BYTES:
                raise BadImageError(
                    f"{shown(name)} has {facts.st_size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}"
                )
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as fault:
            raise BadImageError(f"{shown(name)} cannot be read: {fault.strerror}") from None
        finally:
            os.close(descriptor)
        if len(data) > MAX_FILE_BYTES:
            raise BadImageError(f"{shown(name)} grew while it was read")
        return data

    def stamp(self, name: str) -> str:
        """Return text that changes when the file does: identity, size and times."""
        try:
            facts = os.stat(name, dir_fd=self._root_fd, follow_symlinks=False)
            if stat.S_ISLNK(facts.st_mode):
                facts = os.stat(self._target(name), dir_fd=self._root_fd, follow_symlinks=False)
        except OSError:
            return "missing"
        return f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                return list(entries)
        except OSError as fault:
            raise SourceError(
                f"the folder {shown(folder or str(self.root))} cannot be listed: {fault.strerror}"
            ) from None

    def _kind(self, entry: os.DirEntry[str], name: str) -> str:
        if entry.name.startswith("."):
            return "hidden"
        try:
            safe_name(name, where="folder")
        except UnsafeSourceError:
            return "unusable name"
        if entry.is_symlink():
            return self._follow(name)
        if entry.is_dir(follow_symlinks=False):
            return "folder"
        return "file" if entry.is_file(follow_symlinks=False) else "special file"

    def _follow(self, name: str) -> str:
        return "linked folder" if (self.root / self._target(name)).is_dir() else "file"

    def _target(self, name: str) -> str:
        """Return the name, under the same root, that a link leads to."""
        target = Path(os.path.realpath(self.root / name))
        if not target.is_relative_to(self.root):
            raise UnsafeSourceError(
                f"{shown(name)} is a link out of the dataset; put the file itself there"
            )
        return target.relative_to(self.root).as_posix()

    def _open(self, name: str) -> int:
        """Open below the root, folder by folder, following no link that appeared since."""
        *parents, last = name.split("/")
        at = self._root_fd
        try:
            for parent in parents:
                lower = os.open(parent, _FOLDER_FLAGS, dir_fd=at)
                if at != self._root_fd:
                    os.close(at)
                at = lower
            return os.open(last, _FILE_FLAGS, dir_fd=at)
        finally:
            if at != self._root_fd:
                os.close(at)

"""A ZIP as a source of files: refused whole when it is hostile, then read entry by entry.

Nothing is ever extracted to disk. Which entries are images of which class is decided in `sources.py`.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ppdd_core.data.folder_source import MAX_FILE_BYTES
from ppdd_core.data.names import safe_name, shown
from ppdd_core.errors import BadImageError, SourceError, UnsafeSourceError

MAX_ENTRIES = 250_000
MAX_DIRECTORY_BYTES = 48 * 2**20  # the central directory is parsed into memory
MAX_RATIO = 200  # of one entry, once it is large; images hardly compress, text and blank DICOM do
MAX_TOTAL_RATIO = 50
LARGE = 4 * 2**20  # below this an entry may compress as it likes

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


@dataclass
class ZipSource:
    """The entries of a ZIP file. Holds the file open until `close`."""

    path: Path
    _entries: dict[str, zipfile.ZipInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file = self.path.open("rb")
        try:
            _refuse_huge_directory(self._file, shown(self.path.name))
            self._zip = zipfile.ZipFile(self._file)
            self._folders = self._check(self._zip.infolist())
        except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError) as fault:
            self._file.close()
            raise SourceError(f"{shown(self.path.name)} is not a readable ZIP: {fault}") from None
        except BaseException:
            self._file.close()
            raise
        facts = os.fstat(self._file.fileno())
        self._stamp = f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"

    def close(self) -> None:
        """Release the archive."""
        self._zip.close()
        self._file.close()

    def contents(self) -> tuple[list[str], list[str], dict[str, int]]:
        """Return the names of files, the names of folders (both sorted), and what was passed over."""
        files = [name for name in self._entries if not _hidden(name)]
        folders = {name for name in self._folders if not _hidden(name)}
        for name in files:  # folders need no entry of their own
            parts = name.split("/")[:-1]
            folders.update("/".join(parts[: n + 1]) for n in range(len(parts)))
        hidden = len(self._entries) - len(files)
        return sorted(files), sorted(folders), {"hidden": hidden} if hidden else {}

    def read(self, name: str) -> bytes:
        """Return the bytes of one entry; BadImageError when it is missing, damaged or too large."""
        info = self._entries.get(name)
        if info is None:
            raise BadImageError(f"{shown(name)} is not in the archive")
        if info.file_size > MAX_FILE_BYTES:
            raise BadImageError(
                f"{shown(name)} has {info.file_size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}"
            )
        try:
            with self._zip.open(info) as entry:
                data = entry.read(info.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as fault:
            raise BadImageError(f"{shown(name)} is damaged in the archive: {fault}") from None
        if len(data) != info.file_size:
            raise BadImageError(f"{shown(name)} is damaged in the archive: its size is forged")
        return data

    def stamp(self, name: str) -> str:
        """Return text that changes when the archive does: identity, size and times."""
        return self._stamp if name in self._entries else "missing"

    def _check(self, infos: Sequence[zipfile.ZipInfo]) -> set[str]:
        """Fill the entries and return the folders; UnsafeSourceError for anything a trap would need."""
        archive = shown(self.path.name)
        if len(infos) > MAX_ENTRIES:
            raise UnsafeSourceError(
                f"{archive} has {len(infos):,} entries; at most {MAX_ENTRIES:,} are read"
            )
        folders: set[str] = set()
        for info in infos:
            # zipfile cuts names at NUL; the original still has it
            name = safe_name(info.orig_filename.removesuffix("/"), where=archive)
            if name in self._entries or name in folders:
                raise UnsafeSourceError(f"{archive} holds {shown(name)} twice")
            if info.is_dir():
                folders.add(name)
                continue
            _refuse_special(info, name, archive)
            self._entries[name] = info
        _refuse_overlap(infos, archive)
        size = self.path.stat().st_size
        total = sum(info.file_size for info in infos)
        if total > max(64 * LARGE, MAX_TOTAL_RATIO * size):
            raise UnsafeSourceError(
                f"{archive} would grow from {size:,} to {total:,} bytes: an archive bomb"
            )
        return folders


def _refuse_special(info: zipfile.ZipInfo, name: str, archive: str) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in {0, stat.S_IFREG}:
        what = "a link" if kind == stat.S_IFLNK else "a special file"
        raise UnsafeSourceError(f"{archive}: {shown(name)} is {what}; only plain files are read")
    if info.flag_bits & 0x1:
        raise SourceError(f"{archive}: {shown(name)} is encrypted; make the ZIP without a password")
    if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise SourceError(
            f"{archive}: {shown(name)} uses compression method {info.compress_type}; "
            "only stored and deflated entries are read"
        )
    if info.file_size > LARGE and info.file_size > MAX_RATIO * info.compress_size:
        raise UnsafeSourceError(
            f"{archive}: {shown(name)} would grow from {info.compress_size:,} to "
            f"{info.file_size:,} bytes: an archive bomb"
        )


def _refuse_overlap(infos: Sequence[zipfile.ZipInfo], archive: str) -> None:
    """Refuse entries that share bytes; a small file can so pose as a huge one."""
    end, before = 0, ""
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise UnsafeSourceError(
                f"{archive}: {shown(before)} and {shown(info.orig_filename)} overlap: an archive bomb"
            )
        end = info.header_offset + 30 + len(info.orig_filename) + info.compress_size
        before = info.orig_filename


def _refuse_huge_directory(file: BinaryIO, archive: str) -> None:
    """Refuse a central directory that would fill memory, before `zipfile` parses it."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, size - _END.size - 65_535))
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise SourceError(f"{archive} is not a readable ZIP (or it is cut short)")
    fields = _END.unpack_from(tail, at)
    entries, directory = fields[4], fields[5]
    locator = start + at - _END64_LOCATOR.size
    if locator >= 0:
        file.seek(locator)
        mark, _, offset, _ = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
        if mark == b"PK\x06\x07" and offset + _END64.size <= size:
            file.seek(offset)
            wide = _END64.unpack(file.read(_END64.size))
            entries, directory = max(entries, wide[7]), max(directory % (2**32 - 1), wide[8])
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY_BYTES:
        raise UnsafeSourceError(
            f"{archive} lists {entries:,} entries in {directory:,} bytes; at most {MAX_ENTRIES:,} "
            f"in {MAX_DIRECTORY_BYTES:,} are read"
        )


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))

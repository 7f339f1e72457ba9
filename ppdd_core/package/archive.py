"""A package's files as a folder or as one ZIP: read within bounds, written whole or not at all.

Torch-free, and knows nothing of what the files mean: bytes by path in, bytes by path out. Reading never
extracts: entries are checked, then read into memory, so hostile names touch no disk. The ZIP is
deterministic (no compression, fixed order, fixed time and mode): the same package gives the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ppdd_core.errors import PackageError, UnsafeArchiveError

MAX_ENTRIES = 10_000
MAX_FILE_BYTES = 2**30
MAX_TOTAL_BYTES = 2**30
WHAT_IT_IS = "a package is a folder, or a ZIP made by: ppdd package export"
_FIRST = ("manifest.json", "signature.dsse.json", "README.md")  # so that a reader need not seek far
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a ZIP can say
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_WINDOWS = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True, slots=True)
class Unsafe:
    """An entry that was not read, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What was read: files by path, and the entries refused."""

    files: Mapping[str, bytes]
    refused: tuple[Unsafe, ...]


def path_problem(path: str) -> str | None:
    """Return why a path may not stand in a package, or None.

    Allowed are at most two segments of ASCII letters, digits and . _ -, so there is nothing to escape with and
    no two spellings of one name; names that Windows reserves are refused too.
    """
    if len(path) > 200:
        return "it is longer than 200 characters"
    segments = path.split("/")
    if len(segments) > 2:
        return "it lies deeper than one folder"
    for segment in segments:
        if not _SEGMENT.fullmatch(segment):
            return "a name must be letters, digits, . _ - and begin and end with none of the dots"
        if _WINDOWS.fullmatch(segment):
            return "Windows reserves this name"
    return None


def read_files(path: Path) -> Contents:
    """Return the files of the package in `path`, a folder or a ZIP.

    Single entries that are unsafe (name, link, special file, compressed, repeated, too large) are refused and
    listed. A container that cannot be trusted as a whole raises UnsafeArchiveError: not a ZIP, bytes between or
    before the entries, overlapping entries, more than MAX_ENTRIES, more than MAX_TOTAL_BYTES; its message begins
    with `title(path)` and a colon. PackageError if there is nothing there, or a pipe or a device.
    """
    try:
        if path.is_dir():
            return _read_folder(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # waits for no pipe
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise PackageError(
                f"{path} is no package but a pipe or another special file; {WHAT_IT_IS}"
            )
        with os.fdopen(descriptor, "rb") as file:
            return _read_zip(file)
    except UnsafeArchiveError as err:
        raise UnsafeArchiveError(f"{title(path)}: {err}") from err
    except OSError as err:
        raise PackageError(f"there is no package at {path}: {err.strerror or err}") from err


def title(path: Path) -> str:
    """Return the name by which messages call the package in `path`."""
    return path.name or str(path)


def write_archive(files: Mapping[str, bytes], path: Path) -> None:
    """Write the files as the ZIP `path`, which appears complete or not at all; the same files give the same bytes.

    A file that already holds exactly these bytes is left as it is; anything else in `path` raises PackageError
    and stays untouched.
    """
    _check_names(files)
    if path.is_dir():
        raise PackageError(f"{path} is a folder; name the file to write, as in {path / 'NAME.zip'}")
    _make_parent(path)
    with _partial_folder(path) as folder:
        partial = folder / "archive"
        with partial.open("xb") as file:
            _write_zip(files, file)
            file.flush()
            os.fsync(file.fileno())
        _place(partial, path)
    _sync_folder(path.parent)


def write_folder(files: Mapping[str, bytes], target: Path) -> None:
    """Write the files as the folder `target`, which appears complete or not at all.

    A folder that already holds exactly these files is left as it is; one that holds anything else raises
    PackageError, because a package never changes.
    """
    _check_names(files)
    _make_parent(target)
    if _holds(target, files):
        return
    with _partial_folder(target) as partial:
        content = partial / "content"
        content.mkdir(mode=0o755)
        for inner in sorted({name.split("/")[0] for name in files if "/" in name}):
            (content / inner).mkdir(mode=0o755)
        for name, data in files.items():
            _write_new(content / name, data)
        for folder in sorted({(content / name).parent for name in files}):
            _sync_folder(folder)
        try:
            content.rename(target)  # onto nothing, or onto an empty folder
        except OSError as err:
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not _holds(target, files):
                raise PackageError(f"{target} came to hold something else meanwhile") from err
    _sync_folder(target.parent)


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PackageError(
            f"{target} cannot be made, because {target.parent} is not a folder or lies in a file"
        ) from None


def _place(partial: Path, path: Path) -> None:
    """Give the finished file its name, in one step and not over a file that has it already."""
    try:
        os.link(partial, path)
    except FileExistsError:
        taken = True
    except OSError:  # a file system without hard links: look first, then rename
        taken = os.path.lexists(path)
        if not taken:
            partial.rename(path)
    else:
        taken = False
    if taken and not _same_bytes(partial, path):
        raise PackageError(
            f"{path} exists and holds something else; choose another name or remove it first"
        )


def _same_bytes(one: Path, other: Path) -> bool:
    """Return whether both are plain files with the same bytes."""
    stated = other.lstat()
    if not stat.S_ISREG(stated.st_mode) or stated.st_size != one.stat().st_size:
        return False
    return filecmp.cmp(one, other, shallow=False)


def _holds(target: Path, files: Mapping[str, bytes]) -> bool:
    if not target.is_symlink() and not target.exists():
        return False
    if target.is_symlink() or not target.is_dir():
        raise PackageError(f"{target} exists and is not a folder; choose another place")
    if not any(target.iterdir()):
        return False
    found = _read_folder(target)
    if found.refused or dict(found.files) != dict(files):
        raise PackageError(
            f"{target} already holds something else; a package never changes, so choose another folder or version"
        )
    return True


def _check_names(files: Mapping[str, bytes]) -> None:
    folded: set[str] = set()
    for name in files:
        problem = path_problem(name)
        if problem or name.lower() in folded:
            raise UnsafeArchiveError(
                f"{name!a} cannot stand in a package: {problem or 'it is there twice'}"
            )
        folded.add(name.lower())


# --- folder --------------------------------------------------------------------------------------------


def _read_folder(root: Path) -> Contents:
    files: dict[str, bytes] = {}
    refused: list[Unsafe] = []
    total = 0
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, parent in _walk(top, refused):
            try:
                data = _read_plain(name.rsplit("/", 1)[-1], parent)
            except _NotPlainError as err:
                refused.append(Unsafe(name, str(err)))
                continue
            total += len(data)
            if total > MAX_TOTAL_BYTES:
                raise UnsafeArchiveError(f"it holds more than {MAX_TOTAL_BYTES} bytes")
            files[name] = data
    finally:
        os.close(top)
    return Contents(_in_order(files), tuple(refused))


class _NotPlainError(Exception):
    """A folder entry that is no plain file of bounded size."""


def _walk(top: int, refused: list[Unsafe]) -> Iterator[tuple[str, int]]:
    """Yield (path, descriptor of its folder) of every safely named entry, at most one folder deep."""
    count = 0
    for prefix, folder in _folders(top, refused):
        try:
            with os.scandir(folder) as entries:
                names, empty = [], True
                for entry in entries:
                    count, empty = count + 1, False
                    if count > MAX_ENTRIES:
                        raise UnsafeArchiveError(
                            f"it holds more than {MAX_ENTRIES} entries; {WHAT_IT_IS}"
                        )
                    if prefix or not entry.is_dir(follow_symlinks=False):
                        names.append(entry.name)
            if prefix and empty:
                refused.append(Unsafe(prefix, "it is an empty folder; packages have none"))
            for name in sorted(names):
                problem = path_problem(prefix + name)
                if problem:
                    refused.append(Unsafe(prefix + name, problem))
                else:
                    yield prefix + name, folder
        finally:
            if prefix:
                os.close(folder)


def _folders(top: int, refused: list[Unsafe]) -> Iterator[tuple[str, int]]:
    yield "", top
    with os.scandir(top) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names:
        problem = path_problem(name)
        if problem:
            refused.append(Unsafe(name + "/", problem))
        else:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            yield name + "/", os.open(name, flags, dir_fd=top)


def _read_plain(name: str, folder: int) -> bytes:
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as err:
        kind = (
            "it is a link" if err.errno == errno.ELOOP else f"it cannot be opened ({err.strerror})"
        )
        raise _NotPlainError(kind) from err
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NotPlainError("it is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise _NotPlainError(f"it has more than {MAX_FILE_BYTES} bytes")
    return data


def _write_new(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `target`; it goes on exit, and what killed writers left goes first.

    A living writer holds a lock on its folder, so only abandoned ones are removed.
    """
    prefix = f".{target.name}.partial-"
    for old in target.parent.glob(prefix.replace("[", "[[]") + "*"):
        with _locked(old) as ours:
            if ours:
                shutil.rmtree(old, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        with _locked(folder) as ours:
            if not ours or not folder.is_dir():
                continue  # another writer took it for abandoned before it was locked
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


# --- ZIP -----------------------------------------------------------------------------------------------


def _in_order(files: Mapping[str, bytes]) -> dict[str, bytes]:
    first = [name for name in _FIRST if name in files]
    return {name: files[name] for name in first + sorted(set(files) - set(first))}


def _write_zip(files: Mapping[str, bytes], file: IO[bytes]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name, data in _in_order(files).items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, data)


def _read_zip(file: IO[bytes]) -> Contents:
    size = file.seek(0, os.SEEK_END)
    if size > MAX_TOTAL_BYTES + MAX_ENTRIES * 1024:
        raise UnsafeArchiveError(f"it has {size} bytes; at most {MAX_TOTAL_BYTES} are allowed")
    if _announced_entries(file, size) > MAX_ENTRIES:
        raise UnsafeArchiveError(f"it has more than {MAX_ENTRIES} entries")
    try:
        with zipfile.ZipFile(file) as archive:
            if archive.comment:
                raise UnsafeArchiveError("it carries a comment; packages have none")
            entries = archive.infolist()
            _check_layout(file, entries, archive.start_dir)
            return _read_entries(archive, entries)
    except (zipfile.BadZipFile, EOFError, struct.error, ValueError, NotImplementedError) as err:
        raise UnsafeArchiveError(f"it is not a whole ZIP file ({err}); {WHAT_IT_IS}") from err


def _announced_entries(file: IO[bytes], size: int) -> int:
    """Return the number of entries in the end record (22 bytes; without a comment it stands last)."""
    file.seek(max(0, size - 22))
    end = file.read(22)
    if len(end) < 22 or not end.startswith(b"PK\x05\x06"):
        raise UnsafeArchiveError(f"it is not a whole ZIP file without a comment; {WHAT_IT_IS}")
    directory_size: int
    entries, directory_size = struct.unpack_from("<HL", end, 10)
    if directory_size > MAX_ENTRIES * 512:
        raise UnsafeArchiveError(f"its ZIP directory is too large; {WHAT_IT_IS}")
    return int(entries)


def _check_layout(file: IO[bytes], entries: list[zipfile.ZipInfo], end: int) -> None:
    """Refuse a ZIP whose entries do not lie end to end from its first byte to its directory."""
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset != position:
            raise UnsafeArchiveError("entries overlap, or there are bytes between them")
        file.seek(position)
        header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        name_length, extra_length = header[9], header[10]
        name = file.read(name_length)
        encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
        if header[0] != b"PK\x03\x04" or name.decode(encoding) != entry.orig_filename:
            raise UnsafeArchiveError("the name at an entry differs from the one in the directory")
        position += _LOCAL_HEADER.size + name_length + extra_length + entry.compress_size
    if position != end:
        raise UnsafeArchiveError("entries overlap, or there are bytes between them")


def _read_entries(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> Contents:
    files: dict[str, bytes] = {}
    refused: list[Unsafe] = []
    folded: set[str] = set()
    total = 0
    for entry in entries:
        name = entry.orig_filename
        reason = path_problem(name) or _entry_problem(entry)
        if reason is None and name.lower() in folded:
            reason = "another entry has the same name"
        folded.add(name.lower())
        if reason is None:
            total += entry.file_size
            if total > MAX_TOTAL_BYTES:
                raise UnsafeArchiveError(f"it holds more than {MAX_TOTAL_BYTES} bytes")
            try:
                with archive.open(entry) as stream:
                    data = stream.read(entry.file_size + 1)
            except zipfile.BadZipFile:
                reason = "its bytes do not fit their checksum"
            else:
                if len(data) == entry.file_size:
                    files[name] = data
                    continue
                reason = "it is shorter or longer than it says"
        refused.append(Unsafe(name, reason))
    return Contents(_in_order(files), tuple(refused))


def _entry_problem(entry: zipfile.ZipInfo) -> str | None:
    mode = entry.external_attr >> 16
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return (
            "it is compressed; packages are stored as they are (make one with: ppdd package export)"
        )
    if entry.flag_bits & 0x2041:
        return "it is encrypted"
    if entry.extra:
        return "it carries an extra field"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return "it is a link or a special file"
    if entry.file_size > MAX_FILE_BYTES:
        return f"it has more than {MAX_FILE_BYTES} bytes"
    return None

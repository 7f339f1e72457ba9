"""A package's files as a folder or as one ZIP: read within bounds, written whole or not at all.

Torch-free, and knows nothing of what the files mean: bytes by path in, bytes by path out. Reading never
extracts: entries are checked and hashed in pieces, then read from where they lie when asked for, so hostile names
touch no disk and a large package no memory. The ZIP is deterministic (no compression, fixed order, fixed time and
mode): the same package gives the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import hashlib
import os
import re
import shutil
import stat
import struct
import tempfile
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ppdd_core.errors import PackageError, UnsafeArchiveError

MAX_ENTRIES = 10_000
MAX_FILE_BYTES = 2**30
MAX_TOTAL_BYTES = 2**30
PIECE = 2**20  # bytes that are read at a time
WHAT_IT_IS = "a package is a folder, or a ZIP made by: ppdd package export"
_FIRST = ("manifest.json", "signature.dsse.json", "README.md")  # so that a reader need not seek far
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a ZIP can say
_SEGMENT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?")
_WINDOWS = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_PLAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Unsafe:
    """An entry that was not read, and why."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file was when it was read first."""

    size: int  # bytes
    sha256: str


Read = Callable[[str, int, int], bytes]  # (path, first byte, number of bytes)


class Files(Mapping[str, bytes]):
    """A package's files by path, each read from where it lies when it is asked for.

    Whole or in `pieces` they are the bytes that were seen first: PackageError where somebody changed them since.
    """

    def __init__(self, seen: Mapping[str, Seen], read: Read) -> None:
        self._seen, self._read = dict(seen), read

    def __getitem__(self, path: str) -> bytes:
        data = self.part(path, 0, self._seen[path].size)
        self._require_same(path, hashlib.sha256(data).hexdigest())
        return data

    def __contains__(self, path: object) -> bool:
        return path in self._seen  # what Mapping does would read the file

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def size(self, path: str) -> int:
        """Return how many bytes the file has."""
        return self._seen[path].size

    def sha256(self, path: str) -> str:
        """Return the digest of the file's bytes."""
        return self._seen[path].sha256

    def small(self, path: str, limit: int) -> bytes:
        """Return the file whole; PackageError where it has more than `limit` bytes."""
        if self.size(path) > limit:
            raise PackageError(f"{path} has {self.size(path)} bytes; at most {limit} are allowed")
        return self[path]

    def part(self, path: str, start: int, length: int) -> bytes:
        """Return `length` bytes from `start`, fewer where the file ends before."""
        try:
            return self._read(path, start, max(0, min(length, self.size(path) - start)))
        except OSError as err:
            raise PackageError(f"{path} cannot be read: {err.strerror or err}") from err

    def pieces(self, path: str) -> Iterator[bytes]:
        """Yield the file's bytes, PIECE at a time."""
        digest = hashlib.sha256()
        for start in range(0, self.size(path), PIECE):
            piece = self.part(path, start, PIECE)
            digest.update(piece)
            yield piece
        self._require_same(path, digest.hexdigest())

    def _require_same(self, path: str, sha256: str) -> None:
        if sha256 != self.sha256(path):
            raise PackageError(f"{path} was changed while it was read; start again")


def in_files(files: Mapping[str, bytes]) -> Files:
    """Return files that are held in memory as `Files`."""
    if isinstance(files, Files):
        return files
    seen = {path: Seen(len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()}
    return Files(seen, lambda path, start, length: files[path][start : start + length])


@dataclass(frozen=True, slots=True)
class Contents:
    """What was read: files by path, and the entries refused."""

    files: Files
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
        held = in_files(files)
        for name in held:
            _write_new(content / name, held.pieces(name))
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
    found, wanted = _read_folder(target), in_files(files)
    same = set(found.files) == set(wanted) and all(
        found.files.sha256(name) == wanted.sha256(name) for name in wanted
    )
    if found.refused or not same:
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
    seen: dict[str, Seen] = {}
    refused: list[Unsafe] = []
    total = 0
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    files = None
    try:
        for name, parent in _walk(top, refused):
            try:
                seen[name] = _see_plain(name.rsplit("/", 1)[-1], parent)
            except _NotPlainError as err:
                refused.append(Unsafe(name, str(err)))
                continue
            total += seen[name].size
            if total > MAX_TOTAL_BYTES:
                raise UnsafeArchiveError(f"it holds more than {MAX_TOTAL_BYTES} bytes")
        files = Files(_in_order(seen), lambda *asked: _read_below(top, *asked))
    finally:
        if files is None:
            os.close(top)
    weakref.finalize(files, os.close, top)
    return Contents(files, tuple(refused))


def _read_below(top: int, path: str, start: int, length: int) -> bytes:
    """Return a part of a plain file of the folder `top`, following no link."""
    folder, _, name = path.rpartition("/")
    parent = _open_folder(folder, top) if folder else top
    try:
        descriptor = os.open(name, _PLAIN, dir_fd=parent)
    finally:
        if folder:
            os.close(parent)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PackageError(f"{path} was changed while it was read; start again")
        return _read_at(descriptor, start, length)
    finally:
        os.close(descriptor)


def _read_at(descriptor: int, start: int, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        piece = os.pread(descriptor, min(length - len(found), 2**30), start + len(found))
        if not piece:
            break
        found += piece
    return bytes(found)


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
            yield name + "/", _open_folder(name, top)


def _open_folder(name: str, top: int) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=top)


def _see_plain(name: str, folder: int) -> Seen:
    try:
        descriptor = os.open(name, _PLAIN, dir_fd=folder)
    except OSError as err:
        kind = (
            "it is a link" if err.errno == errno.ELOOP else f"it cannot be opened ({err.strerror})"
        )
        raise _NotPlainError(kind) from err
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NotPlainError("it is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        seen = _see(file, MAX_FILE_BYTES)
    if seen.size > MAX_FILE_BYTES:
        raise _NotPlainError(f"it has more than {MAX_FILE_BYTES} bytes")
    return seen


def _see(file: IO[bytes], most: int) -> Seen:
    """Return what the file is, read in pieces until its end or until it has more than `most` bytes."""
    digest, size = hashlib.sha256(), 0
    while size <= most and (piece := file.read(PIECE)):
        digest.update(piece)
        size += len(piece)
    return Seen(size, digest.hexdigest())


def _write_new(path: Path, pieces: Iterator[bytes]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "wb") as file:
        file.writelines(pieces)
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


def _in_order(seen: Mapping[str, Seen]) -> dict[str, Seen]:
    return {name: seen[name] for name in _ordered(seen)}


def _ordered(names: Iterable[str]) -> list[str]:
    known = set(names)
    first = [name for name in _FIRST if name in known]
    return first + sorted(known - set(first))


def _write_zip(files: Mapping[str, bytes], file: IO[bytes]) -> None:
    held = in_files(files)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=False) as archive:
        for name in _ordered(held):
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.file_size = held.size(name)
            with archive.open(entry, "w") as target:
                for piece in held.pieces(name):
                    target.write(piece)


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
            begins = _check_layout(file, entries, archive.start_dir)
            seen, refused = _see_entries(archive, entries)
    except (zipfile.BadZipFile, EOFError, struct.error, ValueError, NotImplementedError) as err:
        raise UnsafeArchiveError(f"it is not a whole ZIP file ({err}); {WHAT_IT_IS}") from err
    descriptor = os.dup(file.fileno())
    files = Files(
        _in_order(seen),
        lambda path, start, length: _read_at(descriptor, begins[path] + start, length),
    )
    weakref.finalize(files, os.close, descriptor)
    return Contents(files, refused)


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


def _check_layout(file: IO[bytes], entries: list[zipfile.ZipInfo], end: int) -> Mapping[str, int]:
    """Return where the bytes of each name begin; of a repeated one, its first entry's.

    A ZIP whose entries do not lie end to end from its first byte to its directory is refused.
    """
    begins: dict[str, int] = {}
    by_offset: dict[int, int] = {}
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
        position += _LOCAL_HEADER.size + name_length + extra_length
        by_offset[entry.header_offset] = position
        position += entry.compress_size
    if position != end:
        raise UnsafeArchiveError("entries overlap, or there are bytes between them")
    for entry in entries:
        begins.setdefault(entry.orig_filename, by_offset[entry.header_offset])
    return begins


def _see_entries(
    archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]
) -> tuple[dict[str, Seen], tuple[Unsafe, ...]]:
    """Return what the safe entries are, read once to their end, and which are refused."""
    seen: dict[str, Seen] = {}
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
                    found = _see(stream, entry.file_size)
            except zipfile.BadZipFile:
                reason = "its bytes do not fit their checksum"
            else:
                if found.size == entry.file_size:
                    seen[name] = found
                    continue
                reason = "it is shorter or longer than it says"
        refused.append(Unsafe(name, reason))
    return seen, tuple(refused)


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

"""Decoded images on disk: one `.npy` for pixels and one JSON index per content, made once.

An entry is a folder named by the sha256 of what decides it: digests, names, labels, patients and splits
of the files, in order, and the image size. It appears by rename, whole or not at all; its checksums
are verified at every opening and a damaged entry is made anew. `seen/` maps what the file system says
about unchanged files (identity, size, times) to a content key, so a second run reads no image.

Whoever has an entry's images holds it (`cache_folder.py`) until they are let go, or the process ends, however it ends.
A folder's time says when its entry was last opened. Decoding itself is in `decoding.py`; what the findings are, in
`check.py`.

Shape suffixes: R images, H W pixels.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppdd_core.data.cache_folder import BUILDING, building_folder, is_still, lock, read_seen
from ppdd_core.data.decoding import decode_all
from ppdd_core.data.files import ppdd_home, write_atomically
from ppdd_core.data.images import Decoded
from ppdd_core.data.names import shown
from ppdd_core.data.sources import Entry, Source
from ppdd_core.errors import BadImageError, SourceError

FORMAT = "ppdd images 1"  # part of every key: raise it when decoding changes

_HEADER = 128  # bytes before the pixels in pixels.npy
OnProgress = Callable[[int, int], None]  # (files done, files in all)


@dataclass(frozen=True, slots=True)
class Record:
    """One decoded image: where it came from, and what its original was like."""

    name: str
    label: str
    patient: str
    split: str
    digest: str
    width: int
    height: int
    bits: int
    extreme: float
    low: int  # darkest and brightest value after decoding
    high: int


_RECORD = attrgetter(*(field.name for field in fields(Record)))  # asdict copies deeply: 0.2 ms each


@dataclass(frozen=True, slots=True)
class Unreadable:
    """One file that was skipped, and why."""

    name: str
    label: str
    reason: str


@dataclass(frozen=True, slots=True)
class CachedImages:
    """The readable images of a source, in order of their names.

    `pixels_sha256` is over the pixels alone. `histograms` counts, per class, the pixels of each of the
    256 grey levels.
    """

    pixels_RHW: NDArray[np.uint8]
    pixels_sha256: str
    records: tuple[Record, ...]
    unreadable: tuple[Unreadable, ...]
    histograms: dict[str, tuple[int, ...]]


def default_cache_dir() -> Path:
    """Return `$PPDD_HOME/cache`, or `~/.local/share/ppdd/cache`."""
    return ppdd_home() / "cache"


def cached_images(
    source: Source,
    entries: Sequence[Entry],
    *,
    image_size: int,
    cache_dir: Path,
    processes: int | None = None,
    on_progress: OnProgress | None = None,
) -> CachedImages:
    """Return the images of `entries`, from the cache or decoded into it.

    `on_progress` is called in this thread with (files done, files in all). Raises SourceError when no
    file can be read, a file changes meanwhile, or the cache cannot be written.
    """
    progress = on_progress or (lambda *_: None)
    total, cache_dir = len(entries), cache_dir / "images"
    stamps = [source.stamp(entry.name) for entry in entries]
    seen = cache_dir / "seen" / _key(image_size, entries, stamps)
    try:
        _private_folder(seen.parent)
        if (known := read_seen(seen)) and (found := _open_entry(cache_dir / known)):
            progress(total, total)
            return found
        digests, missing = _digest_all(source, entries, lambda done: progress(done // 10, total))
        facts = [
            digest or missing[entry.name] for entry, digest in zip(entries, digests, strict=True)
        ]
        key = _key(image_size, entries, facts)
        found = _open_entry(cache_dir / key)
        if found is None:
            with building_folder(cache_dir) as (folder, descriptor):
                hashed = _build(
                    folder,
                    source,
                    entries,
                    digests,
                    missing,
                    image_size=image_size,
                    processes=processes,
                    on_done=lambda done: progress((total + 9 * done) // 10, total),
                )
                found = _publish(folder, descriptor, cache_dir / key, hashed)
        if [source.stamp(entry.name) for entry in entries] == stamps:
            write_atomically(seen, key.encode())
    except OSError as fault:
        raise SourceError(
            f"the image cache in {shown(str(cache_dir))} cannot be used: {fault.strerror or fault}; "
            "make room there or set PPDD_HOME to another folder"
        ) from None
    progress(total, total)
    return found


def _key(image_size: int, entries: Sequence[Entry], facts: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, image_size]).encode())
    for entry, fact in zip(entries, facts, strict=True):
        row = [entry.name, entry.label, entry.patient, entry.split, fact]
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def _digest_all(
    source: Source, entries: Sequence[Entry], on_done: Callable[[int], None]
) -> tuple[list[str], dict[str, str]]:
    """Return each file's sha256 ('' where it cannot be read) and, by name, why it cannot."""
    digests: list[str] = []
    missing: dict[str, str] = {}
    for done, entry in enumerate(entries, start=1):
        try:
            digests.append(hashlib.sha256(source.read(entry.name)).hexdigest())
        except BadImageError as fault:
            digests.append("")
            missing[entry.name] = str(fault)
        on_done(done)
    return digests, missing


def _build(
    folder: Path,
    source: Source,
    entries: Sequence[Entry],
    digests: Sequence[str],
    missing: dict[str, str],
    *,
    image_size: int,
    processes: int | None,
    on_done: Callable[[int], None],
) -> str:
    """Write pixels.npy, index.json and sums.json of a new entry into `folder`; return the digest of the pixels."""
    expected = {entry.name: digest for entry, digest in zip(entries, digests, strict=True)}

    def read(name: str) -> bytes:
        if name in missing:
            raise BadImageError(missing[name])
        data = source.read(name)
        if hashlib.sha256(data).hexdigest() != expected[name]:
            raise SourceError(f"{shown(name)} changed while the dataset was read; start again")
        return data

    step = image_size * image_size
    records: list[Record | None] = [None] * len(entries)
    reasons: dict[int, str] = {}
    histograms = {entry.label: np.zeros(256, dtype=np.int64) for entry in entries}
    names = [entry.name for entry in entries]
    with (folder / "pixels.npy").open("w+b") as file:
        _reserve(file.fileno(), _HEADER + step * len(entries))
        with closing(
            decode_all(names, read, image_size=image_size, processes=processes)
        ) as outcomes:  # closed here also on Ctrl-C, so that no child outlives the work
            for done, (at, outcome) in enumerate(outcomes, start=1):
                if isinstance(outcome, Decoded):
                    # written, not mapped: a full disk is then an error and not a SIGBUS
                    os.pwrite(file.fileno(), outcome.pixels_SS.data, _HEADER + at * step)
                    histograms[entries[at].label] += outcome.counts
                    records[at] = _record(entries[at], digests[at], outcome)
                else:
                    reasons[at] = str(outcome)
                on_done(done)
        kept = [at for at, record in enumerate(records) if record is not None]
        _refuse_nothing_readable(kept, reasons)
        _close_gaps(file.fileno(), kept, step)
        _write_header(file.fileno(), (len(kept), image_size, image_size))
        os.fsync(file.fileno())
    index = {
        "format": FORMAT,
        "records": [_RECORD(record) for record in records if record is not None],
        "unreadable": [
            [entries[at].name, entries[at].label, reason] for at, reason in sorted(reasons.items())
        ],
        "histograms": {label: counts.tolist() for label, counts in histograms.items()},
    }
    write_atomically(folder / "index.json", json.dumps(index).encode())
    pixels_RHW = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
    sums = {
        "index": _sha256(folder / "index.json"),
        "pixels": hashlib.sha256(pixels_RHW.data).hexdigest(),
    }
    write_atomically(folder / "sums.json", json.dumps(sums).encode())
    return sums["pixels"]


def _record(entry: Entry, digest: str, image: Decoded) -> Record:
    levels = image.counts.nonzero()[0]
    return Record(
        name=entry.name,
        label=entry.label,
        patient=entry.patient,
        split=entry.split,
        digest=digest,
        width=image.width,
        height=image.height,
        bits=image.bits,
        extreme=round(image.extreme, 4),
        low=int(levels[0]),
        high=int(levels[-1]),
    )


def _reserve(descriptor: int, size: int) -> None:
    """Take the disk space now, so that a full disk shows before the work."""
    os.ftruncate(descriptor, size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as fault:
            if fault.errno not in {errno.EOPNOTSUPP, errno.EINVAL}:  # file systems that cannot
                raise


def _close_gaps(descriptor: int, kept: Sequence[int], step: int) -> None:
    """Move the rows of readable images together and cut the rest off."""
    for to, at in enumerate(kept):
        if to != at:
            row = os.pread(descriptor, step, _HEADER + at * step)
            os.pwrite(descriptor, row, _HEADER + to * step)
    os.ftruncate(descriptor, _HEADER + len(kept) * step)


def _write_header(descriptor: int, shape: tuple[int, int, int]) -> None:
    header = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    assert len(header.getvalue()) == _HEADER
    os.pwrite(descriptor, header.getvalue(), 0)


def _refuse_nothing_readable(kept: Sequence[int], reasons: dict[int, str]) -> None:
    if not kept:
        first = "; ".join(reason for _, reason in sorted(reasons.items())[:3])
        raise SourceError(f"none of the {len(reasons):,} image files can be read: {first}")


def _open_entry(folder: Path) -> CachedImages | None:
    """Return a cache entry, held until its pixels are let go, or None where there is none that is whole."""
    try:
        descriptor = lock(folder, fcntl.LOCK_SH)
    except OSError:
        return None
    found = _read_entry(folder) if is_still(folder, descriptor) else None
    if found is None:
        os.close(descriptor)
    else:
        _hold(found, descriptor)
    return found


def _hold(images: CachedImages, descriptor: int) -> None:
    """Keep the lock of an entry as long as its pixels are mapped, and note that it was used."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    with suppress(OSError):  # a cache of somebody else's
        os.utime(descriptor)
    mapped: Any = images.pixels_RHW
    while isinstance(mapped, np.ndarray) and mapped.base is not None:
        mapped = mapped.base  # what every view and slice of the pixels keeps
    weakref.finalize(mapped, os.close, descriptor)


def _read_entry(folder: Path, hashed: str | None = None) -> CachedImages | None:
    """Return what a folder holds if it is whole; `hashed` is the digest of pixels that this process has just read."""
    try:
        sums = json.loads((folder / "sums.json").read_bytes())
        if _sha256(folder / "index.json") != sums["index"]:
            return None
        index: dict[str, Any] = json.loads((folder / "index.json").read_bytes())
        pixels_RHW = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        whole = pixels_RHW.dtype == np.uint8 and len(pixels_RHW) == len(index["records"])
        if not whole or (hashed or hashlib.sha256(pixels_RHW.data).hexdigest()) != sums["pixels"]:
            return None
        return CachedImages(
            pixels_RHW=np.asarray(pixels_RHW),
            pixels_sha256=sums["pixels"],
            records=tuple(Record(*values) for values in index["records"]),
            unreadable=tuple(Unreadable(*values) for values in index["unreadable"]),
            histograms={label: tuple(counts) for label, counts in index["histograms"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whatever is wrong with it: make it anew


def _publish(folder: Path, descriptor: int, entry: Path, hashed: str) -> CachedImages:
    """Give the finished and locked folder its name; where another process was first, use what it made."""
    for _ in range(3):
        try:
            folder.rename(entry)
        except OSError as fault:
            if fault.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            if (found := _open_entry(entry)) is not None:
                return found
            with suppress(OSError):  # damaged: out of the way, unless another process was quicker
                doomed = Path(tempfile.mkdtemp(prefix=BUILDING, dir=entry.parent))
                entry.rename(doomed / "damaged")
                shutil.rmtree(doomed, ignore_errors=True)
        else:
            _sync_folder(entry.parent)
            if (
                made := _read_entry(entry, hashed)
            ) is not None:  # nobody removes it: it is locked as ours
                _hold(made, os.dup(descriptor))
                return made
            break
    raise SourceError(
        f"the image cache in {shown(str(entry.parent))} does not keep what is written"
    )


def _private_folder(folder: Path) -> None:
    """Make the cache readable by its owner only: it holds patients' images."""
    for level in (folder.parent.parent, folder.parent, folder):
        level.mkdir(parents=True, exist_ok=True, mode=0o700)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

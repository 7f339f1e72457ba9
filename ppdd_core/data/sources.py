"""Source datasets: which files are images, and of which class, patient and split.

Folder of class folders, ZIP of the same, the Kaggle layout with `images/` beside `masks/`, and a CSV
manifest beside the images. Nothing is decoded here; bytes are read by `folder_source.py` and
`archive_source.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from ppdd_core.data.archive_source import ZipSource
from ppdd_core.data.folder_source import FolderSource
from ppdd_core.data.images import SUFFIXES
from ppdd_core.data.manifest_table import SPLITS, choose_rows, parse_manifest
from ppdd_core.data.names import shown
from ppdd_core.errors import BadConfigError, SourceError

MANIFEST = "manifest.csv"
MASKS = frozenset({"mask", "masks"})
MAX_CLASSES = 1000


class Source(Protocol):
    """Where files come from: a folder, or a ZIP."""

    def contents(self) -> tuple[Sequence[str], Sequence[str], Mapping[str, int]]:
        """Return file names, folder names, and what was passed over, by reason."""

    def read(self, name: str) -> bytes:
        """Return a file's bytes; BadImageError where that fails."""

    def stamp(self, name: str) -> str:
        """Return text that changes when the file does."""

    def close(self) -> None:
        """Release what is held open."""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One candidate image. `patient` and `split` are empty where nothing is known."""

    name: str
    label: str
    patient: str
    split: str


@dataclass(frozen=True, slots=True)
class Listing:
    """The candidate images of a source dataset, sorted by name, and what is not among them."""

    entries: tuple[Entry, ...]
    empty_classes: tuple[str, ...]  # class folders without an image
    masks: int  # files that are masks, left out
    passed_over: Mapping[str, int]  # other files left out, by reason


@contextmanager
def open_source(path: Path) -> Iterator[tuple[Source, str | None]]:
    """Open a dataset; yields the source and the name of the manifest that `path` itself names.

    Raises SourceError when there is nothing there or it is neither folder, ZIP nor CSV,
    UnsafeSourceError for a hostile ZIP.
    """
    manifest: str | None = None
    source: Source
    try:
        if path.is_dir():
            source = FolderSource(path)
        elif not path.exists():
            raise SourceError(f"{shown(str(path))} does not exist")
        elif path.suffix.lower() == ".csv":
            source, manifest = FolderSource(path.resolve().parent), path.resolve().name
        elif path.is_file():
            source = ZipSource(path)
        else:
            raise SourceError(f"{shown(str(path))} is neither a folder, a ZIP nor a CSV manifest")
    except OSError as fault:
        raise SourceError(f"{shown(str(path))} cannot be opened: {fault.strerror}") from None
    try:
        yield source, manifest
    finally:
        source.close()


def list_images(
    source: Source, *, manifest: str | None = None, where: Mapping[str, str] | None = None
) -> Listing:
    """Return the candidate images of `source`, chosen by `where` (column = value, all must hold).

    With `manifest` only the files it lists are looked at. Raises SourceError for a dataset without
    images, of masks only, or a bad manifest; UnsafeSourceError for paths that leave the root;
    BadConfigError for `where` without a manifest or naming what does not exist.
    """
    if manifest is not None:
        return _by_manifest(source, manifest, "", where or {}, None)
    files, folders, passed = source.contents()
    root = _wrapper(files)
    if f"{root}{MANIFEST}" in set(files):
        listing = _by_manifest(source, f"{root}{MANIFEST}", root, where or {}, files)
    elif where:
        raise BadConfigError(
            f"--where needs a {MANIFEST} with columns to choose by; this dataset has none"
        )
    else:
        listing = _by_folders(files, folders, root)
    both = Counter(passed) + Counter(listing.passed_over)
    return Listing(
        listing.entries, listing.empty_classes, listing.masks, dict(sorted(both.items()))
    )


def _by_manifest(
    source: Source,
    name: str,
    root: str,
    where: Mapping[str, str],
    files: Sequence[str] | None,
) -> Listing:
    table = parse_manifest(source.read(name), name=name)
    rows = choose_rows(table, where)
    entries = tuple(sorted(Entry(root + r.path, r.label, r.patient, r.split) for r in rows))
    _refuse_many_classes({entry.label for entry in entries})
    if files is None:
        return Listing(entries, (), 0, {})
    listed = {root + row.path for row in table.rows}
    rest = [file for file in files if file not in listed and file != name]
    masks = sum(_is_mask(file) for file in rest)
    images = sum(_is_image(file) and not _is_mask(file) for file in rest)
    other = len(rest) - masks - images
    passed = {"image not in the manifest": images, "not an image": other}
    return Listing(entries, (), masks, {why: n for why, n in passed.items() if n})


def _by_folders(files: Sequence[str], folders: Sequence[str], root: str) -> Listing:
    inside = [file[len(root) :] for file in files]
    splits = _split_folders(inside)
    depth = 1 if splits else 0  # where the class stands in a path
    entries: list[Entry] = []
    passed: Counter[str] = Counter()
    masks = 0
    for name in inside:
        parts = name.split("/")
        if not _is_image(name):
            passed["not an image"] += 1
        elif len(parts) < depth + 2:
            passed["image outside the class folders"] += 1
        elif _is_mask(name):
            masks += 1
        else:
            split = SPLITS[parts[0].lower()] if splits else ""
            entries.append(Entry(root + name, parts[depth], "", split))
    _refuse_no_images(entries, masks, passed)
    labels = {entry.label for entry in entries}
    _refuse_many_classes(labels)
    if labels <= {"images", *MASKS}:
        raise SourceError(
            "this folder is the inside of one class (images/ beside masks/); give the folder above it, "
            "which holds one folder per class"
        )
    below = [f[len(root) :].split("/") for f in folders if f.startswith(root)]
    classes = {parts[depth] for parts in below if len(parts) == depth + 1} - MASKS
    return Listing(tuple(sorted(entries)), tuple(sorted(classes - labels)), masks, dict(passed))


def _wrapper(files: Sequence[str]) -> str:
    """Return the one folder that everything lies in ('data/'), or '' where there is none."""
    root = ""
    while True:
        inside = [file[len(root) :] for file in files]
        tops = {name.split("/", 1)[0] for name in inside}
        depths = [name.count("/") for name in inside]
        if len(tops) != 1 or not inside or min(depths) < 1:
            return root
        top = next(iter(tops))
        if f"{root}{top}/{MANIFEST}" in files:
            return f"{root}{top}/"
        second = {name.split("/")[1].lower() for name in inside if name.count("/") > 1}
        images_here = any(name.count("/") == 1 and _is_image(name) for name in inside)
        # a lone class folder, plain or in the Kaggle layout, is no wrapper
        if images_here or second <= {"images", *MASKS}:
            return root
        root = f"{root}{top}/"


def _split_folders(names: Sequence[str]) -> bool:
    """Tell whether the top folders are train/ and test/ rather than classes."""
    images = [name for name in names if _is_image(name) and not _is_mask(name)]
    tops = {name.split("/", 1)[0].lower() for name in images}
    return (
        len(tops) > 1
        and all(top in SPLITS for top in tops)
        and all(n.count("/") > 1 for n in images)
    )


def _is_image(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in SUFFIXES or not suffix  # DICOM exports often have no suffix


def _is_mask(name: str) -> bool:
    return any(part.lower() in MASKS for part in name.split("/")[:-1])


def _refuse_no_images(entries: Sequence[Entry], masks: int, passed: Mapping[str, int]) -> None:
    if entries:
        return
    if masks:
        raise SourceError(
            f"only masks were found ({masks:,} files under masks/); the X-rays themselves are missing"
        )
    seen = ", ".join(f"{n:,} x {why}" for why, n in passed.items()) or "the dataset is empty"
    raise SourceError(
        f"no images were found ({seen}); one folder per class with PNG, JPEG or DICOM files, or a "
        f"{MANIFEST}, is needed"
    )


def _refuse_many_classes(labels: set[str]) -> None:
    if len(labels) > MAX_CLASSES:
        raise SourceError(
            f"{len(labels):,} classes were found, at most {MAX_CLASSES:,} are possible; is the label "
            "column, or the level of folders, the right one?"
        )

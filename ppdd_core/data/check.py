"""What a source dataset holds and what is wrong with it: facts in, findings out.

Nothing is read or decoded here. Every finding has a stable code, a severity, a plain sentence and what to
do; `error` means that a distillation on these data would be wrong or worthless.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ppdd_core.data.cache import CachedImages, Record, Unreadable
from ppdd_core.data.names import shown
from ppdd_core.data.sources import Listing
from ppdd_core.errors import SourceError

MIN_PATIENTS = 3  # one for each of train, validation and test
SMALL_CLASS = 20  # images
MASK_LIKE = 0.9  # share of pixels at the ends of the grey range
MANY_UNREADABLE = 0.2
FLAT = 8  # grey levels between the darkest and the brightest pixel
EXAMPLES = 5

T = TypeVar("T")
K = TypeVar("K")

Severity = Literal["error", "warning", "note"]
SPLIT_ORDER = ("train", "validation", "test", "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing; `count` is how many files, patients or classes it concerns."""

    code: str
    severity: Severity
    message: str
    advice: str
    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SizeStatistics:
    """Width, height and significant bits of the originals, in pixels and bits."""

    width: tuple[int, int, int]  # smallest, median, largest
    height: tuple[int, int, int]
    bits: Mapping[str, int]  # depth -> images


@dataclass(frozen=True, slots=True)
class GreyStatistics:
    """Grey levels (0..255) after decoding, over all pixels of a class or of everything."""

    mean: float
    sd: float
    histogram: tuple[int, ...]  # 256 counts


@dataclass(frozen=True, slots=True)
class Findings:
    """The report of `check`: what is there, and what is wrong with it."""

    images: int
    patients: int | None  # None where no patient is known
    classes: Mapping[str, int]  # readable images
    splits: Mapping[str, Mapping[str, int]]  # split ('' = unassigned) -> class -> images
    unreadable: tuple[Unreadable, ...]
    masks: int
    passed_over: Mapping[str, int]
    sizes: SizeStatistics
    grey: GreyStatistics
    grey_by_class: Mapping[str, GreyStatistics]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that must be mended first."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def refuse_errors(self) -> None:
        """Raise SourceError naming every error-level finding, if there is one."""
        if self.errors:
            raise SourceError(
                "the dataset cannot be used as it is: "
                + " ".join(f"{finding.message} {finding.advice}" for finding in self.errors)
            )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values; file and patient names included, so keep it local."""
        return {
            "format_version": 1,
            "images": self.images,
            "patients": self.patients,
            "classes": dict(self.classes),
            "splits": {split or "unassigned": dict(of) for split, of in self.splits.items()},
            "unreadable": [asdict(file) for file in self.unreadable],
            "masks_left_out": self.masks,
            "passed_over": dict(self.passed_over),
            "sizes": {
                "width": dict(
                    zip(("smallest", "median", "largest"), self.sizes.width, strict=True)
                ),
                "height": dict(
                    zip(("smallest", "median", "largest"), self.sizes.height, strict=True)
                ),
                "bits": dict(self.sizes.bits),
            },
            "grey": asdict(self.grey),
            "grey_by_class": {name: asdict(grey) for name, grey in self.grey_by_class.items()},
            "findings": [asdict(finding) for finding in self.findings],
        }


def examine(listing: Listing, cached: CachedImages, *, image_size: int) -> Findings:
    """Return what the decoded images of a listing hold and what is wrong with them."""
    records = cached.records
    classes = dict(sorted(Counter(record.label for record in records).items()))
    found = [
        *_about_classes(listing, cached, classes),
        *_about_repeats(records),
        *_about_pixels(records, image_size),
        *_about_files(listing, cached),
    ]
    rank = {"error": 0, "warning": 1, "note": 2}
    known = {record.patient for record in records if record.patient}
    histograms = {label: np.array(counts) for label, counts in cached.histograms.items()}
    return Findings(
        images=len(records),
        patients=len(known) if known else None,
        classes=classes,
        splits=_by_split(records, classes),
        unreadable=cached.unreadable,
        masks=listing.masks,
        passed_over=listing.passed_over,
        sizes=_sizes(records),
        grey=_grey(sum(histograms.values(), start=np.zeros(256, dtype=np.int64))),
        grey_by_class={label: _grey(histograms[label]) for label in classes},
        findings=tuple(sorted(found, key=lambda finding: rank[finding.severity])),
    )


def _about_classes(
    listing: Listing, cached: CachedImages, classes: Mapping[str, int]
) -> Iterable[Finding]:
    lost = {file.label for file in cached.unreadable} - set(classes)
    empty = sorted({*listing.empty_classes, *lost})
    if empty:
        yield Finding(
            "empty-class",
            "error",
            f"{_n(empty, 'class')} without a readable image: {_some(empty)}.",
            "Add images, or remove the folder.",
            len(empty),
            _examples(empty),
        )
    if len(classes) < 2:
        yield Finding(
            "too-few-classes",
            "error",
            f"There is only one class with images ({_some(classes)}).",
            "At least two are needed to tell apart.",
            1,
        )
    folded = _groups(classes, key=str.casefold)
    twins = [name for group in folded.values() if len(group) > 1 for name in group]
    if twins:
        yield Finding(
            "similar-class-names",
            "warning",
            f"Classes differ only in upper and lower case: {_some(twins)}.",
            "If they are the same, give them one name.",
            len(twins),
            _examples(twins),
        )
    patients = {
        label: len({record.patient or record.digest for record in group})
        for label, group in _groups(cached.records, key=lambda record: record.label).items()
    }
    tiny = [label for label in classes if patients[label] < MIN_PATIENTS]
    if tiny:
        yield Finding(
            "too-small-class",
            "error",
            f"{_n(tiny, 'class')} with fewer than {MIN_PATIENTS} patients or distinct images: {_some(tiny)}.",
            "It cannot be in train, validation and test at once; add images or leave the class out.",
            len(tiny),
            _examples(tiny),
        )
    small = [label for label, count in classes.items() if count < SMALL_CLASS and label not in tiny]
    if small:
        yield Finding(
            "small-class",
            "warning",
            f"{_n(small, 'class')} with fewer than {SMALL_CLASS} images: {_some(small)}.",
            "Its figures will be uncertain, and its images may be recognisable in what is distilled.",
            len(small),
            _examples(small),
        )
    splits = _by_split(cached.records, classes)
    gaps = [
        f"{label} in {split}"
        for split, counts in splits.items()
        if split and len(splits) > 1
        for label, count in counts.items()
        if not count
    ]
    if gaps:
        yield Finding(
            "class-missing-in-split",
            "warning",
            f"{_n(gaps, 'class')} without an image in a split: {_some(gaps)}.",
            "Correct the split column, or remove it to have the split drawn by patient.",
            len(gaps),
            _examples(gaps),
        )


def _about_repeats(records: Sequence[Record]) -> Iterable[Finding]:
    same = [group for group in _groups(records, key=lambda r: r.digest).values() if len(group) > 1]
    two_labels = [group for group in same if len({record.label for record in group}) > 1]
    if two_labels:
        pairs = [_pair(group, lambda record: record.label) for group in two_labels]
        yield Finding(
            "conflicting-labels",
            "error",
            f"{_n(pairs, 'image')} under two labels: {_some(pairs, quote=False)}.",
            "Decide which label is right and remove the other file.",
            len(pairs),
            tuple(pairs[:EXAMPLES]),
        )
    across = [group for group in same if _crosses(group)]
    if across:
        pairs = [_pair(group, lambda record: record.split) for group in across]
        yield Finding(
            "duplicates-across-splits",
            "error",
            f"{_n(pairs, 'image')} in more than one split: {_some(pairs, quote=False)}.",
            "Remove the copies: what was trained on must not be tested on.",
            len(pairs),
            tuple(pairs[:EXAMPLES]),
        )
    if same:
        extra = sum(len(group) - 1 for group in same)
        pairs = [_pair(group, lambda record: record.label) for group in same]
        yield Finding(
            "duplicates",
            "warning",
            f"{_n(extra, 'exact copy', 'exact copies')} of other images: "
            f"{_some(pairs, quote=False)}.",
            "They stay on one side of every split, but count twice; remove them if that is not meant.",
            extra,
            tuple(pairs[:EXAMPLES]),
        )
    patients = _groups((record for record in records if record.patient), key=lambda r: r.patient)
    leaking = sorted(patient for patient, group in patients.items() if _crosses(group))
    if leaking:
        yield Finding(
            "patients-across-splits",
            "error",
            f"{_n(leaking, 'patient')} with images in more than one split: {_some(leaking)}.",
            "Give all images of a patient the same split, or remove the split column.",
            len(leaking),
            _examples(leaking),
        )


def _about_pixels(records: Sequence[Record], image_size: int) -> Iterable[Finding]:
    masks = [record.name for record in records if record.extreme >= MASK_LIKE]
    if masks:
        most = len(masks) > len(records) / 2
        yield Finding(
            "looks-like-masks",
            "error" if most else "warning",
            f"{_n(masks, 'image')} hold little but black and white, as masks do: {_some(masks)}.",
            "Point to the X-rays themselves; put masks in folders called masks.",
            len(masks),
            _examples(masks),
        )
    flat = [record.name for record in records if record.high - record.low < FLAT]
    if flat:
        yield Finding(
            "blank-images",
            "warning",
            f"{_n(flat, 'image')} show nothing, one grey all over: {_some(flat)}.",
            "Look at them and remove them.",
            len(flat),
            _examples(flat),
        )
    small = [record.name for record in records if min(record.width, record.height) < image_size]
    if small:
        yield Finding(
            "enlarged",
            "note",
            f"{_n(small, 'image')} smaller than {image_size} pixels and enlarged to it.",
            "A smaller image size loses nothing on them.",
            len(small),
            _examples(small),
        )


def _about_files(listing: Listing, cached: CachedImages) -> Iterable[Finding]:
    bad = cached.unreadable
    if bad:
        much = len(bad) > MANY_UNREADABLE * (len(bad) + len(cached.records))
        yield Finding(
            "unreadable",
            "error" if much else "warning",
            f"{_n(bad, 'file')} cannot be read and left out: {bad[0].reason}"
            + (f" (and {len(bad) - 1:,} more)." if len(bad) > 1 else "."),
            "Repair, export again or remove them; every reason is in the list of unreadable files.",
            len(bad),
            tuple(file.reason for file in bad[:EXAMPLES]),
        )
    if listing.masks:
        yield Finding(
            "masks-left-out",
            "note",
            f"{_n(listing.masks, 'file')} in folders called masks left out.",
            "Masks are not X-rays; nothing needs to be done.",
            listing.masks,
        )
    for reason, count in listing.passed_over.items():
        yield Finding(
            "passed-over",
            "warning" if "image" in reason and reason != "not an image" else "note",
            f"{_n(count, 'file')} passed over: {reason}.",
            "Only PNG, JPEG and DICOM files in class folders, or in the manifest, are read.",
            count,
        )


def _by_split(records: Sequence[Record], classes: Iterable[str]) -> dict[str, dict[str, int]]:
    counts = Counter((record.split, record.label) for record in records)
    present = {split for split, _ in counts}
    return {
        split: {label: counts[split, label] for label in classes}
        for split in SPLIT_ORDER
        if split in present
    }


def _sizes(records: Sequence[Record]) -> SizeStatistics:
    bits = Counter(record.bits for record in records)
    return SizeStatistics(
        width=_spread([record.width for record in records]),
        height=_spread([record.height for record in records]),
        bits={str(depth): bits[depth] for depth in sorted(bits)},
    )


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[-1]


def _grey(counts: np.ndarray[Any, np.dtype[np.int64]]) -> GreyStatistics:
    levels, total = np.arange(256), max(1, int(counts.sum()))
    mean = float((levels * counts).sum() / total)
    variance = float((counts * (levels - mean) ** 2).sum() / total)
    return GreyStatistics(round(mean, 3), round(variance**0.5, 3), tuple(counts.tolist()))


def _groups(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _crosses(group: Sequence[Record]) -> bool:
    return len({record.split for record in group if record.split}) > 1


def _pair(group: Sequence[Record], of: Callable[[Record], str]) -> str:
    first = group[0]
    other = next((record for record in group if of(record) != of(first)), group[1])
    return f"{shown(first.name)} = {shown(other.name)}"


def _n(what: int | Sequence[object], one: str, many: str | None = None) -> str:
    count = what if isinstance(what, int) else len(what)
    plural = many or (f"{one}es" if one.endswith("s") else f"{one}s")
    return f"{count:,} {one if count == 1 else plural}"


def _some(names: Iterable[str], *, quote: bool = True) -> str:
    listed = [shown(name) if quote else name for name in names]
    more = f" and {len(listed) - 3:,} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _examples(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(shown(name) for name in names[:EXAMPLES])

"""LabelledImages: decoded images with labels, patients and splits; loading them and splitting by patient.

What a source may look like is in `sources.py`, what its findings are in `check.py`, where decoded
images lie in `cache.py`.

Shape suffixes: R images, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ppdd_core.data.cache import cached_images, default_cache_dir
from ppdd_core.data.check import Findings, examine
from ppdd_core.data.images import MAX_SIDE
from ppdd_core.data.names import shown
from ppdd_core.data.sources import list_images, open_source
from ppdd_core.errors import BadConfigError, SourceError
from ppdd_core.seeding import derive


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Grey square images with what is known about each; make one with `labelled_images`.

    `pixels_RHW` is uint8 and read-only, memory-mapped where it comes from the cache; `labels_R` is
    int64, an index into `classes`. `patients` holds "image:" + digest where no patient is known, so
    that an image without one is a group of its own together with its exact copies. `digests` are
    the sha256 of the source files. `splits` holds "train", "validation", "test" or "".
    """

    pixels_RHW: NDArray[np.uint8]
    labels_R: NDArray[np.int64]
    classes: tuple[str, ...]
    patients: tuple[str, ...]
    digests: tuple[str, ...]
    splits: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels_R)

    def select(self, rows: NDArray[np.integer]) -> LabelledImages:
        """Return the images at `rows` (indices), in that order, all classes kept; pixels are copied."""
        at = [int(row) for row in rows]
        return labelled_images(
            self.pixels_RHW[rows],
            self.labels_R[rows],
            classes=self.classes,
            patients=[self.patients[row] for row in at],
            digests=[self.digests[row] for row in at],
            splits=[self.splits[row] for row in at],
        )

    def counts(self) -> dict[str, int]:
        """Return the number of images of each class, absent classes with 0."""
        found = np.bincount(self.labels_R, minlength=len(self.classes))
        return {name: int(count) for name, count in zip(self.classes, found, strict=True)}


@dataclass(frozen=True, slots=True)
class Split:
    """Three parts of a dataset that share no patient. Choose on validation; look at test once."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages


def count_shared(data: LabelledImages, *others: LabelledImages) -> int:
    """Return how many images of `data` are of a patient of the others, or copies of one of their images."""
    patients = {patient for other in others for patient in other.patients}
    digests = {digest for other in others for digest in other.digests}
    return sum(
        patient in patients or digest in digests
        for patient, digest in zip(data.patients, data.digests, strict=True)
    )


def labelled_images(
    pixels_RHW: NDArray[np.uint8],
    labels_R: NDArray[np.int64],
    *,
    classes: Sequence[str],
    patients: Sequence[str],
    digests: Sequence[str],
    splits: Sequence[str],
    pixels_sha256: str | None = None,
) -> LabelledImages:
    """Return the value with its fingerprint: sha256 over pixels, labels and all else, in order.

    `pixels_sha256` spares hashing pixels whose digest is known.
    """
    assert len({len(pixels_RHW), len(labels_R), len(patients), len(digests), len(splits)}) == 1
    pixels_RHW.flags.writeable = False
    labels_R = labels_R.astype(np.int64)
    labels_R.flags.writeable = False
    if pixels_sha256 is None:
        pixels_sha256 = hashlib.sha256(np.ascontiguousarray(pixels_RHW).data).hexdigest()
    facts = [
        pixels_RHW.shape,
        pixels_sha256,
        labels_R.tolist(),
        list(classes),
        list(patients),
        list(digests),
        list(splits),
    ]
    return LabelledImages(
        pixels_RHW=pixels_RHW,
        labels_R=labels_R,
        classes=tuple(classes),
        patients=tuple(patients),
        digests=tuple(digests),
        splits=tuple(splits),
        fingerprint=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
    )


def load_images(
    path: Path,
    *,
    image_size: int,
    where: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    processes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[LabelledImages, Findings]:
    """Return the readable images of a source dataset, sorted by name, and what was found about it.

    `path` is a folder or ZIP of class folders, or one with a `manifest.csv`, or a CSV manifest.
    `where` keeps the manifest's rows whose columns have the given values. Images are decoded once
    into `cache_dir` (`$PPDD_HOME/cache` or `~/.local/share/ppdd/cache`) by `processes` children (all
    cores; 0 decodes in this process). `on_progress(done, total)` counts files.

    Bad files are skipped and listed in the findings, never silently. Raises SourceError for a dataset
    that holds no readable image, UnsafeSourceError for paths out of the root and bombs,
    BadConfigError for a `where` that fits nothing. Error-level findings do not raise here: see
    `Findings.refuse_errors`.
    """
    if not 1 <= image_size <= MAX_SIDE:
        raise BadConfigError(f"image_size must lie in 1..{MAX_SIDE}, got {image_size}")
    with open_source(path) as (source, manifest):
        listing = list_images(source, manifest=manifest, where=where)
        cached = cached_images(
            source,
            listing.entries,
            image_size=image_size,
            cache_dir=cache_dir or default_cache_dir(),
            processes=processes,
            on_progress=on_progress,
        )
    records = cached.records
    classes = sorted({record.label for record in records})
    index = {name: at for at, name in enumerate(classes)}
    data = labelled_images(
        cached.pixels_RHW,
        np.array([index[record.label] for record in records], dtype=np.int64),
        classes=classes,
        patients=[record.patient or f"image:{record.digest}" for record in records],
        digests=[record.digest for record in records],
        splits=[record.split for record in records],
        pixels_sha256=cached.pixels_sha256,
    )
    return data, examine(listing, cached, image_size=image_size)


def split_by_patient(
    data: LabelledImages, *, seed: int, validation: float = 0.15, test: float = 0.2
) -> Split:
    """Return train, validation and test, no patient (and no exact copy) in two of them.

    Where the manifest assigns test rows they are the test part; where it assigns validation rows they
    are the validation part; what it leaves open is drawn by patient from the rest. `validation` and
    `test` are shares of what is drawn from.

    A patient's place is decided by a hash of the seed and the patient alone, so adding files moves
    nobody. Only where this leaves a class out of a part does its nearest patient move there: a class
    of two patients is in train and test, a class of one in train only. Raises BadConfigError for
    impossible shares, SourceError for a patient (or copies of one image) that the manifest puts in
    two parts, or when nothing is left to train on.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise BadConfigError(
            f"validation and test are shares that leave something to train on; got {validation} and {test}"
        )
    groups = _groups(data)
    fixed = _assigned(data, groups)
    drawn = {
        part: share
        for part, share in (("test", test), ("validation", validation))
        if share > 0 and part not in data.splits
    }
    position = {name: derive(seed, "split", name) / 2**63 for name in groups}
    place = {name: fixed.get(name) or _part_at(position[name], drawn) for name in groups}
    _fill_gaps(
        data, groups, place, {n: p for n, p in position.items() if n not in fixed}, list(drawn)
    )
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for name, members in groups.items():
        rows[place[name]].extend(members)
    if not rows["train"]:
        raise SourceError("the split leaves nothing to train on; more patients are needed")
    parts = {part: data.select(np.array(sorted(at), dtype=np.int64)) for part, at in rows.items()}
    return Split(train=parts["train"], validation=parts["validation"], test=parts["test"])


def _groups(data: LabelledImages) -> dict[str, list[int]]:
    """Return rows that must stay together: one patient's, and those of patients who share an image.

    A group is named after the first of its patients in alphabetical order.
    """
    leader = {patient: patient for patient in data.patients}

    def lead(patient: str) -> str:
        while leader[patient] != patient:
            leader[patient] = leader[leader[patient]]
            patient = leader[patient]
        return patient

    owner: dict[str, str] = {}
    for patient, digest in zip(data.patients, data.digests, strict=True):
        first, second = sorted((lead(patient), lead(owner.setdefault(digest, patient))))
        leader[second] = first
    groups: dict[str, list[int]] = defaultdict(list)
    for row, patient in enumerate(data.patients):
        groups[lead(patient)].append(row)
    return dict(groups)


def _assigned(data: LabelledImages, groups: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Return the groups the manifest puts into validation or test; refuse those it tears apart."""
    parts = {name: {data.splits[row] for row in rows} - {""} for name, rows in groups.items()}
    torn = sorted(name for name, of in parts.items() if len(of) > 1)
    if torn:
        raise SourceError(
            f"{len(torn):,} patients (or copies of one image) are in more than one split, {shown(torn[0])} "
            "among them; give each one split in the manifest, or remove its split column"
        )
    return {name: part for name, of in parts.items() for part in of if part != "train"}


def _part_at(position: float, drawn: Mapping[str, float]) -> str:
    for part, share in drawn.items():
        if position < share:
            return part
        position -= share
    return "train"


def _fill_gaps(
    data: LabelledImages,
    groups: Mapping[str, Sequence[int]],
    place: dict[str, str],
    movable: Mapping[str, float],
    drawn: Sequence[str],
) -> None:
    """Give train, then each drawn part, a group of every class it lacks; changes `place`."""
    labels = {name: {int(data.labels_R[row]) for row in rows} for name, rows in groups.items()}
    held = Counter((place[name], label) for name in groups for label in labels[name])
    parts = ["train", *drawn]  # where there are too few patients for all, the first come first

    def can_go(name: str, part: str) -> bool:
        now = place[name]
        if now == part:
            return False
        return parts.index(now) > parts.index(part) or all(held[now, of] > 1 for of in labels[name])

    for part in parts:
        for label in range(len(data.classes)):
            if held[part, label]:
                continue
            spare = [name for name in movable if label in labels[name] and can_go(name, part)]
            if not spare:
                continue
            # positions run test, validation, train: the last is nearest to train, the first to the others
            towards = -1 if part == "train" else 1
            moved = min(spare, key=lambda name: (place[name] != "train", towards * movable[name]))
            held.subtract((place[moved], of) for of in labels[moved])
            held.update((part, of) for of in labels[moved])
            place[moved] = part

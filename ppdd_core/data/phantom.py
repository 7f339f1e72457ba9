"""Drawn chest X-rays in four classes, for demos and tests: there is no patient behind any of them.

Everything but the disease is drawn without knowing the class. The classes borrow the names of the COVID-19
Radiography Database so that demos read like the paper; they are caricatures and mean nothing clinically.

Here: who is drawn, and writing a dataset folder. Not here: how a chest is drawn (`phantom_chest`) and what
a class looks like (`phantom_disease`), reading datasets, anything about training. Torch-free.
Shape suffixes: R images, H W pixels.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ppdd_core.data.phantom_chest import (
    LINE_WIDTH,
    Canvas,
    Site,
    bones,
    devices,
    expose,
    film,
    hila,
    meet,
    open_chest,
    soft_tissue,
    vessel_dots,
)
from ppdd_core.data.phantom_disease import DISEASES
from ppdd_core.errors import BadConfigError, SourceError
from ppdd_core.seeding import derive

CLASSES = ("COVID", "Lung Opacity", "Normal", "Viral Pneumonia")
PROPORTIONS: Mapping[str, float] = {  # image counts of the COVID-19 Radiography Database
    "COVID": 3616,
    "Lung Opacity": 6012,
    "Normal": 10192,
    "Viral Pneumonia": 1345,
}
SMALLEST, LARGEST = 32, 512
TEST_EVERY = 5  # of a class's patients, one in so many belongs to the test split
IMAGES_OF_A_PATIENT = (1, 1, 1, 2, 2, 3, 4)  # equally likely

SITES: Mapping[str, Site] = {
    "a": Site(
        contrast=1.0, gamma=1.0, noise=0.012, blur=0.0022, zoom=1.0,
        habitus=1.0, heart=1.0, lines=0.10, border=0.12,
    ),
    "b": Site(  # older, heavier people at the bedside: portable machine, more lines
        contrast=0.86, gamma=0.86, noise=0.020, blur=0.0042, zoom=1.06,
        habitus=1.12, heart=1.12, lines=0.28, border=0.05,
    ),
    "c": Site(  # a new flat detector, a hard look, wider collimation
        contrast=1.10, gamma=1.10, noise=0.008, blur=0.0016, zoom=0.90,
        habitus=0.93, heart=0.95, lines=0.06, border=0.30,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Phantoms:
    """Drawn images: `pixels_RHW` uint8 [R, S, S], `labels_R` int64 [R] into `classes`.

    `patients` and `splits` ("train" | "test", by patient) hold one entry per image.
    """

    pixels_RHW: NDArray[np.uint8]
    labels_R: NDArray[np.int64]
    classes: tuple[str, ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels_R)


def draw_phantoms(
    *,
    images: int,
    image_size: int,
    seed: int,
    site: str = "a",
    proportions: Mapping[str, float] | None = None,
) -> Phantoms:
    """Return drawn chest X-rays of as many patients as it takes, one to four images each.

    The first images of a longer draw are the shorter draw. `proportions` are the relative class sizes
    (default: those of the COVID-19 Radiography Database); a class with 0 or left out gets no image.
    Refuses with BadConfigError: an unknown site or class, a size outside 32…512, fewer than 1 image.
    """
    plan = _plan(images, seed=seed, site=site, proportions=proportions)
    _check_size(image_size)
    pixels_RHW = np.empty((images, image_size, image_size), dtype=np.uint8)
    for row, shot in enumerate(plan):
        pixels_RHW[row] = _draw(shot, seed=seed, site=site, size=image_size)
    return Phantoms(
        pixels_RHW=pixels_RHW,
        labels_R=np.array([shot.label for shot in plan], dtype=np.int64),
        classes=CLASSES,
        patients=tuple(_patient_id(seed, site, shot.patient) for shot in plan),
        splits=tuple(shot.split for shot in plan),
    )


def write_phantoms(
    folder: Path,
    *,
    images: int,
    image_size: int,
    seed: int,
    site: str = "a",
    proportions: Mapping[str, float] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the images of `draw_phantoms` as a dataset folder: all of it, or nothing.

    `<class>/images/<class>-<n>.png` beside `manifest.csv` (path, label, patient_id, hospital, split).
    Each PNG says in its metadata that it is drawn. `on_progress` hears (images done, images in all).
    Refuses a `folder` that exists and is not empty with SourceError, before anything is drawn.
    """
    plan = _plan(images, seed=seed, site=site, proportions=proportions)
    _check_size(image_size)
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SourceError(f"{folder} exists and is not an empty folder; choose another or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.parent / f".{folder.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write_into(partial, plan, size=image_size, seed=seed, site=site, on_progress=on_progress)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def images_of(
    patients: int, *, seed: int, site: str = "a", proportions: Mapping[str, float] | None = None
) -> int:
    """Return how many images the first `patients` patients have; BadConfigError for less than 1."""
    if patients < 1:
        raise BadConfigError(f"patients must be at least 1, got {patients}")
    shots = _shots(seed=seed, site=site, proportions=proportions)
    return sum(1 for _ in takewhile(lambda shot: shot.patient < patients, shots))


# ------------------------------------------------------------------------------------------- who is drawn


@dataclass(frozen=True, slots=True)
class _Shot:
    """One image to draw: the patient's number, the image's number within the patient."""

    patient: int
    image: int
    label: int
    split: str


def _plan(
    images: int, *, seed: int, site: str, proportions: Mapping[str, float] | None
) -> list[_Shot]:
    if images < 1:
        raise BadConfigError(f"images must be at least 1, got {images}")
    return list(islice(_shots(seed=seed, site=site, proportions=proportions), images))


def _shots(*, seed: int, site: str, proportions: Mapping[str, float] | None) -> Iterator[_Shot]:
    """Yield images without end; each patient joins the class that is furthest behind its share."""
    if site not in SITES:
        raise BadConfigError(f"site must be one of {', '.join(SITES)}, got {site!r}")
    shares = _shares(PROPORTIONS if proportions is None else proportions)
    drawn, patients = np.zeros(len(CLASSES)), [0] * len(CLASSES)
    patient = 0
    while True:
        draw = derive(seed, "phantom", site, patient, "images")
        count = IMAGES_OF_A_PATIENT[draw % len(IMAGES_OF_A_PATIENT)]
        label = int(np.argmax(shares * (drawn.sum() + count) - drawn))
        split = "test" if patients[label] % TEST_EVERY == 1 else "train"
        for image in range(count):
            yield _Shot(patient, image, label, split)
        drawn[label] += count
        patients[label] += 1
        patient += 1


def _shares(proportions: Mapping[str, float]) -> NDArray[np.float64]:
    unknown = sorted(set(proportions) - set(CLASSES))
    if unknown:
        raise BadConfigError(f"no such class: {', '.join(unknown)}; there are {', '.join(CLASSES)}")
    shares: NDArray[np.float64] = np.array(
        [proportions.get(name, 0.0) for name in CLASSES], dtype=np.float64
    )
    if not np.isfinite(shares).all() or (shares < 0).any() or shares.sum() <= 0:
        raise BadConfigError("proportions must be 0 or more and not all 0")
    shares /= shares.sum()
    return shares


def _check_size(image_size: int) -> None:
    if not SMALLEST <= image_size <= LARGEST:
        raise BadConfigError(f"image size must lie in {SMALLEST}…{LARGEST}, got {image_size}")


def _patient_id(seed: int, site: str, patient: int) -> str:
    return f"phantom-{site}-{seed}-{patient:05d}"


def _write_into(
    folder: Path,
    plan: list[_Shot],
    *,
    size: int,
    seed: int,
    site: str,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    info = PngInfo()
    info.add_text("Description", "drawn phantom; there is no patient behind it")
    for name in {CLASSES[shot.label] for shot in plan}:
        (folder / name / "images").mkdir(parents=True)
    written = [0] * len(CLASSES)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", "label", "patient_id", "hospital", "split"])
        for done, shot in enumerate(plan, start=1):
            name = CLASSES[shot.label]
            written[shot.label] += 1
            path = f"{name}/images/{name}-{written[shot.label]}.png"
            pixels_HW = _draw(shot, seed=seed, site=site, size=size)
            Image.fromarray(pixels_HW).save(folder / path, pnginfo=info)
            table.writerow([path, name, _patient_id(seed, site, shot.patient), site, shot.split])
            if on_progress:
                on_progress(done, len(plan))


def _draw(shot: _Shot, *, seed: int, site: str, size: int) -> NDArray[np.uint8]:
    """Return one image [S, S]; seed, site, patient and image decide it, whatever else is drawn.

    The class decides the disease alone: the same patient under another class has the same body, pose and film.
    """

    def rng(*purpose: str | int) -> np.random.Generator:
        return np.random.default_rng(derive(seed, "phantom", site, shot.patient, *purpose))

    habits = SITES[site]
    person, moment = rng("person"), rng("image", shot.image)
    body = meet(person, habits)
    canvas = Canvas.under(expose(person, moment, habits), size)
    metal = devices(person, canvas, habits)
    chest = open_chest(canvas, body)
    vessels = vessel_dots(person, canvas, body)
    sick, course = rng("disease"), rng("disease", shot.image)
    lost, streaks = DISEASES[CLASSES[shot.label]](sick, course, chest)
    lines = canvas.spread(vessels + streaks, LINE_WIDTH) + hila(canvas, body)
    tissue = soft_tissue(chest) - chest.air * (1 - lost) + lines * chest.lung * (1 - 0.6 * lost)
    return film(moment, tissue + bones(chest) + metal, canvas, habits)

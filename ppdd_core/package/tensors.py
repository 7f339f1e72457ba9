"""distilled.safetensors: images, labels and learned step size, written once and read within bounds.

Torch-free: a `DistilledSet` goes in through numpy, arrays come out, and `load` turns them into tensors. The
reader is our own and strict, so that what was verified is what is loaded: exactly three tensors, end to end,
no metadata, no other types, nothing after the last byte.

float32 is the default, so that the set that is loaded is bit for bit the set that was evaluated. float16 halves
the file and costs nothing that can be seen: cxr4 hospital a, `quick`, 5 per class, 5 networks, on validation:
accuracy 0.647 ± 0.075 against 0.650 ± 0.079 in float32, balanced 0.638 against 0.635 (largest change of a pixel 0.12
grey levels). uint8 is not offered: distilled pixels leave [0, 1] by up to 214 grey levels, clipping them gave
0.638 and 0.624.

Shape suffixes: I synthetic images, C H W channel height width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from ppdd_core.errors import PackageError
from ppdd_core.package import canonical
from ppdd_core.package.manifest import TENSORS, Dtype

if TYPE_CHECKING:
    from ppdd_core.data.distilled import DistilledSet

MAX_HEADER_BYTES = 64 * 2**10
MAX_VALUE = 1e4  # of a normalised pixel; distilled images stay within tens
MAX_IMAGE_BYTES = 16 * 2**20  # of one image; the largest that a recipe can make has 3 MiB
MAX_LABEL_BYTES = 64 * 2**20
PART_BYTES = 16 * 2**20  # of images that are looked at together
_TYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
}
_NAMES = ("images", "labels", "learning_rate")


Part = tuple[int, npt.NDArray[np.floating[Any]]]  # number of the first image, images_ICHW


class Tensors(Protocol):
    """What `find_faults` looks at: a file in memory (`Arrays`) or on disk (`StoredTensors`)."""

    @property
    def labels(self) -> npt.NDArray[Any]:
        """[I] int64, or [I, K] float32 where soft."""

    @property
    def learning_rate(self) -> float:
        """The learned step size."""

    def parts(self) -> Iterator[Part]:
        """Yield the images, PART_BYTES at a time."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """The tensors of a package as numpy arrays, read-only views of the file's bytes."""

    images_ICHW: npt.NDArray[np.floating[Any]]  # float16 or float32, normalised
    labels: npt.NDArray[Any]  # [I] int64, or [I, K] float32 where soft
    learning_rate: float

    @property
    def label_of_image_I(self) -> npt.NDArray[np.int64]:
        """The class of every image; the strongest one where labels are soft."""
        return strongest(self.labels)

    def parts(self) -> Iterator[Part]:
        """Yield the images, PART_BYTES at a time."""
        step = _images_of_a_part(self.images_ICHW.shape, self.images_ICHW.dtype)
        for start in range(0, len(self.images_ICHW), step):
            yield start, self.images_ICHW[start : start + step]


Read = Callable[
    [int, int], bytes
]  # (first byte, number of bytes), fewer where the file ends before


@dataclass(frozen=True, slots=True)
class StoredTensors:
    """The tensors of a file that is not in memory: labels and step size, and the images part by part."""

    shape_ICHW: tuple[int, ...]
    dtype: np.dtype[Any]  # of the images
    labels: npt.NDArray[Any]  # [I] int64, or [I, K] float32 where soft
    learning_rate: float
    begin: int  # of the images in the file
    read: Read

    def parts(self) -> Iterator[Part]:
        """Yield the images, PART_BYTES at a time."""
        step = _images_of_a_part(self.shape_ICHW, self.dtype)
        size = math.prod(self.shape_ICHW[1:]) * self.dtype.itemsize
        for start in range(0, self.shape_ICHW[0], step):
            count = min(step, self.shape_ICHW[0] - start)
            data = self.read(self.begin + start * size, count * size)
            if len(data) != count * size:
                raise PackageError(f"{TENSORS} was changed while it was read; start again")
            yield start, np.frombuffer(data, self.dtype).reshape(count, *self.shape_ICHW[1:])


def write_tensors(distilled: DistilledSet, dtype: Dtype) -> bytes:
    """Return the safetensors file of a distilled set, images stored as `dtype`."""
    labels = distilled.labels.detach().cpu().numpy()
    with np.errstate(over="ignore"):  # a float16 overflow becomes inf, which `find_faults` names
        images = distilled.images.detach().cpu().numpy().astype(dtype)
    return save(
        {
            "images": np.ascontiguousarray(images),
            "labels": np.ascontiguousarray(labels, dtype="<i8" if labels.ndim == 1 else "<f4"),
            "learning_rate": np.array([distilled.learning_rate], dtype="<f4"),
        }
    )


def read_tensors(data: bytes) -> Arrays:
    """Return the arrays in a safetensors file; PackageError says what in its layout is wrong."""
    spans, body = _spans(lambda start, length: data[start : start + length], len(data))
    held = memoryview(data)[body:]
    images, labels, rate = (
        np.frombuffer(held[span.begin : span.end], span.dtype).reshape(span.shape)
        for span in (spans[name] for name in _NAMES)
    )
    return Arrays(images, labels, float(rate[0]))


def open_tensors(read: Read, size: int) -> StoredTensors:
    """Return the tensors of a safetensors file of `size` bytes; refused as by `read_tensors`. No image is read."""
    spans, body = _spans(read, size)
    images, labels, rate = (spans[name] for name in _NAMES)

    def whole(span: _Span) -> npt.NDArray[Any]:
        data = read(body + span.begin, span.end - span.begin)
        if len(data) != span.end - span.begin:
            raise PackageError(f"{TENSORS} was changed while it was read; start again")
        return np.frombuffer(data, span.dtype).reshape(span.shape)

    return StoredTensors(
        shape_ICHW=images.shape,
        dtype=images.dtype,
        labels=whole(labels),
        learning_rate=float(whole(rate)[0]),
        begin=body + images.begin,
        read=read,
    )


def strongest(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the class of every image; the strongest one where labels are soft."""
    return (labels if labels.ndim == 1 else labels.argmax(axis=1)).astype(np.int64)


def read_labels(read: Read) -> list[int]:
    """Return the class of every image as `Arrays.label_of_image_I`, without the images.

    `read` gives the file's bytes from a place, at most so many of them; PackageError where they are no such file's.
    """
    length = int.from_bytes(read(0, 8), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise PackageError(f"{TENSORS} does not begin with a safetensors header")
    entries = canonical.parse(
        read(8, length), name=f"the header of {TENSORS}", limit=MAX_HEADER_BYTES
    )
    if not isinstance(entries, dict):
        raise PackageError(f"{TENSORS} does not begin with a safetensors header")
    span = _span("labels", entries.get("labels"))
    data = read(8 + length + span.begin, span.end - span.begin)
    if len(data) != span.end - span.begin or len(span.shape) not in (1, 2) or 0 in span.shape:
        raise PackageError(f"{TENSORS}: labels must be [images] int64 or [images, classes] float32")
    labels = np.frombuffer(data, dtype=span.dtype).reshape(span.shape)
    return [int(label) for label in strongest(labels)]


def find_faults(arrays: Tensors, *, classes: int) -> list[tuple[str, str]]:
    """Return what is wrong with the values, as (code, sentence): not finite, out of range, absurd."""
    faults: list[tuple[str, str]] = []
    bad: list[int] = []
    beyond = False
    for start, images in arrays.parts():
        finite = np.isfinite(images).all(axis=(1, 2, 3))
        bad += [start + int(index) for index in np.flatnonzero(~finite)]
        beyond = beyond or float(np.abs(images[finite]).max(initial=0)) > MAX_VALUE
    if bad:
        faults.append(("image_not_finite", f"images {_some(bad)} hold values that are not finite"))
    elif beyond:
        faults.append(("image_out_of_range", f"an image holds a value beyond ±{MAX_VALUE:g}"))
    labels = arrays.labels
    if labels.ndim == 1:
        wrong = [int(index) for index in np.flatnonzero((labels < 0) | (labels >= classes))]
        if wrong:
            faults.append(("label_out_of_range", f"labels of images {_some(wrong)} name no class"))
    elif labels.shape[1] != classes:
        faults.append(
            (
                "label_out_of_range",
                f"soft labels have {labels.shape[1]} columns for {classes} classes",
            )
        )
    elif not np.isfinite(labels).all() or float(np.abs(labels).max()) > MAX_VALUE:
        faults.append(
            ("label_not_finite", "soft labels hold values that are not finite or absurdly large")
        )
    if not math.isfinite(arrays.learning_rate):
        faults.append(("learning_rate", "the learned learning rate is not a finite number"))
    return faults


def to_grey_IHW(
    images_ICHW: npt.NDArray[np.floating[Any]], *, mean: float, std: float
) -> npt.NDArray[np.uint8]:
    """Return the images as people see them: grey, 0 to 255, channels averaged; not-finite values are black."""
    grey = images_ICHW.astype(np.float32).mean(axis=1) * np.float32(std) + np.float32(mean)
    grey = np.nan_to_num(grey, nan=0.0, posinf=1.0, neginf=0.0)
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


class _Span(NamedTuple):
    """Where a tensor lies behind the header, and of what kind it is."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


def _spans(read: Read, size: int) -> tuple[dict[str, _Span], int]:
    """Return where the three tensors lie, counted from the returned first byte behind the header."""
    length = int.from_bytes(read(0, 8), "little")
    if size < 8 or not 2 <= length <= MAX_HEADER_BYTES or size < 8 + length:
        raise PackageError(f"{TENSORS} does not begin with a safetensors header")
    header = read(8, length)
    if not header.startswith(b"{"):
        raise PackageError(f"{TENSORS} does not begin with a safetensors header")
    entries = canonical.parse(header, name=f"the header of {TENSORS}", limit=MAX_HEADER_BYTES)
    if set(entries) != set(_NAMES):
        raise PackageError(
            f"{TENSORS} must hold exactly {', '.join(_NAMES)}; it holds {_names(entries)}"
        )
    spans = {name: _span(name, entries[name]) for name in _NAMES}
    position, body = 0, 8 + length
    for span in sorted(spans.values(), key=lambda span: span.begin):
        if span.begin != position:
            raise PackageError(f"{TENSORS}: tensors overlap, or there are bytes between them")
        position = span.end
    if position != size - body:
        raise PackageError(
            f"{TENSORS} has {size - body} bytes of tensors, its header says {position}"
        )
    _check_kinds(*(spans[name] for name in _NAMES))
    return spans, body


def _check_kinds(images: _Span, labels: _Span, rate: _Span) -> None:
    if images.dtype.kind != "f" or len(images.shape) != 4 or 0 in images.shape:
        raise PackageError(
            f"{TENSORS}: images must be [images, channels, height, width] float16 or float32"
        )
    if math.prod(images.shape[1:]) * images.dtype.itemsize > MAX_IMAGE_BYTES:
        raise PackageError(f"{TENSORS}: one image has more than {MAX_IMAGE_BYTES} bytes")
    hard = labels.dtype.kind == "i" and labels.shape == images.shape[:1]
    soft = (
        labels.dtype == np.float32 and len(labels.shape) == 2 and labels.shape[0] == images.shape[0]
    )
    if not (hard or soft) or 0 in labels.shape:
        raise PackageError(f"{TENSORS}: labels must be [images] int64 or [images, classes] float32")
    if labels.end - labels.begin > MAX_LABEL_BYTES:
        raise PackageError(f"{TENSORS}: the labels have more than {MAX_LABEL_BYTES} bytes")
    if rate.dtype != np.float32 or rate.shape != (1,):
        raise PackageError(f"{TENSORS}: learning_rate must be [1] float32")


def _images_of_a_part(shape_ICHW: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return max(1, PART_BYTES // (math.prod(shape_ICHW[1:]) * dtype.itemsize))


def _span(name: str, entry: Any) -> _Span:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise PackageError(f"{TENSORS}: {name} must have dtype, shape and data_offsets")
    dtype = _TYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise PackageError(
            f"{TENSORS}: {name} must be F16, F32 or I64, got {str(entry['dtype'])[:40]!a}"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if (
        not _whole_numbers(shape)
        or len(shape) > 4
        or not _whole_numbers(offsets)
        or len(offsets) != 2
    ):
        raise PackageError(f"{TENSORS}: {name} has a shape or offsets that are not whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise PackageError(f"{TENSORS}: {name} has a shape that does not fit its bytes")
    return _Span(dtype, tuple(shape), begin, end)


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _names(entries: Mapping[str, Any]) -> str:
    return ascii(sorted(entries)[:6])


def _some(indices: list[int]) -> str:
    shown = ", ".join(str(index) for index in indices[:5])
    return shown if len(indices) <= 5 else f"{shown} and {len(indices) - 5} more"

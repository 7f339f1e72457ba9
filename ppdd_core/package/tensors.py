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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
_TYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
}
_NAMES = ("images", "labels", "learning_rate")


@dataclass(frozen=True, slots=True)
class Arrays:
    """The tensors of a package as numpy arrays, read-only views of the file's bytes."""

    images_ICHW: npt.NDArray[np.floating[Any]]  # float16 or float32, normalised
    labels: npt.NDArray[Any]  # [I] int64, or [I, K] float32 where soft
    learning_rate: float

    @property
    def label_of_image_I(self) -> npt.NDArray[np.int64]:
        """The class of every image; the strongest one where labels are soft."""
        labels = self.labels if self.labels.ndim == 1 else self.labels.argmax(axis=1)
        return labels.astype(np.int64)


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
    arrays = _read_arrays(data)
    images, labels, rate = (arrays[name] for name in _NAMES)
    if images.dtype.kind != "f" or images.ndim != 4 or images.size == 0:
        raise PackageError(
            f"{TENSORS}: images must be [images, channels, height, width] float16 or float32"
        )
    hard = labels.dtype.kind == "i" and labels.shape == images.shape[:1]
    soft = labels.dtype == np.float32 and labels.ndim == 2 and len(labels) == len(images)
    if not (hard or soft) or labels.size == 0:
        raise PackageError(f"{TENSORS}: labels must be [images] int64 or [images, classes] float32")
    if rate.dtype != np.float32 or rate.shape != (1,):
        raise PackageError(f"{TENSORS}: learning_rate must be [1] float32")
    return Arrays(images, labels, float(rate[0]))


def read_labels(read: Callable[[int, int], bytes]) -> list[int]:
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
    dtype, shape, begin, end = _span("labels", entries.get("labels"))
    data = read(8 + length + begin, end - begin)
    if len(data) != end - begin or len(shape) not in (1, 2) or 0 in shape:
        raise PackageError(f"{TENSORS}: labels must be [images] int64 or [images, classes] float32")
    labels = np.frombuffer(data, dtype=dtype).reshape(shape)
    return [int(label) for label in (labels if labels.ndim == 1 else labels.argmax(axis=1))]


def find_faults(arrays: Arrays, *, classes: int) -> list[tuple[str, str]]:
    """Return what is wrong with the values, as (code, sentence): not finite, out of range, absurd."""
    faults: list[tuple[str, str]] = []
    images = arrays.images_ICHW.astype(np.float32)
    bad = [int(index) for index in np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))]
    if bad:
        faults.append(("image_not_finite", f"images {_some(bad)} hold values that are not finite"))
    elif float(np.abs(images).max()) > MAX_VALUE:
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


def to_grey_IHW(arrays: Arrays, *, mean: float, std: float) -> npt.NDArray[np.uint8]:
    """Return the images as people see them: grey, 0 to 255, channels averaged; not-finite values are black."""
    grey = arrays.images_ICHW.astype(np.float32).mean(axis=1) * np.float32(std) + np.float32(mean)
    grey = np.nan_to_num(grey, nan=0.0, posinf=1.0, neginf=0.0)
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)
    return pixels


def _read_arrays(data: bytes) -> dict[str, npt.NDArray[Any]]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= MAX_HEADER_BYTES or len(data) < 8 + length:
        raise PackageError(f"{TENSORS} does not begin with a safetensors header")
    header = data[8 : 8 + length]
    if not header.startswith(b"{"):
        raise PackageError(f"{TENSORS} does not begin with a safetensors header")
    entries = canonical.parse(header, name=f"the header of {TENSORS}", limit=MAX_HEADER_BYTES)
    if set(entries) != set(_NAMES):
        raise PackageError(
            f"{TENSORS} must hold exactly {', '.join(_NAMES)}; it holds {_names(entries)}"
        )
    body = memoryview(data)[8 + length :]
    spans = {name: _span(name, entries[name]) for name in _NAMES}
    position = 0
    for _, _, begin, end in sorted(spans.values(), key=lambda span: span[2]):
        if begin != position:
            raise PackageError(f"{TENSORS}: tensors overlap, or there are bytes between them")
        position = end
    if position != len(body):
        raise PackageError(
            f"{TENSORS} has {len(body)} bytes of tensors, its header says {position}"
        )
    return {
        name: np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)
        for name, (dtype, shape, begin, end) in spans.items()
    }


def _span(name: str, entry: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
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
    return dtype, tuple(shape), begin, end


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _names(entries: Mapping[str, Any]) -> str:
    return ascii(sorted(entries)[:6])


def _some(indices: list[int]) -> str:
    shown = ", ".join(str(index) for index in indices[:5])
    return shown if len(indices) <= 5 else f"{shown} and {len(indices) - 5} more"

"""One image file into a grey square: PNG and JPEG here, DICOM in `dicom.py`.

Everything is bytes in, array out; nothing is opened by path. Decoding many files at once, and the
child processes that make a crash or a hang harmless, are in `decoding.py`.

The whole image is squashed to a square (no crop, aspect ratio not kept) with antialiased bilinear
filtering in 32-bit floats, and rounded to 8 bits only at the end. Alpha is ignored; EXIF orientation
is not applied; colour becomes ITU-R 601 luma.

Shape suffixes: H W the source image, S the square's side.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ppdd_core.data.names import shown
from ppdd_core.errors import BadConfigError, BadImageError

MAX_PIXELS = 64_000_000  # the largest radiographs have about 20 million
MAX_SIDE = 1024  # of the square
DEPTHS = (8, 10, 12, 14, 16)  # significant bits that occur in 16-bit files
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})

_SAMPLE = 64  # side of the sample that tells masks from radiographs
_LEVELS = np.arange(256, dtype=np.float32) / np.float32(255)

Grey = (
    NDArray[np.uint8] | NDArray[np.float32]
)  # levels of 8 bits as they are, everything else in [0, 1]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One image, ready for the cache, with what `check` wants to know about the original.

    `counts` says how many of its pixels have each of the 256 grey levels. `bits` is the significant depth; `extreme`
    the share of the original's pixels that are nearly its darkest or nearly its brightest value: close to 1 for masks,
    well below for radiographs.
    """

    pixels_SS: NDArray[np.uint8]
    counts: NDArray[np.uint32]
    width: int
    height: int
    bits: int
    extreme: float


def read_grey(data: bytes, *, name: str, image_size: int) -> NDArray[np.uint8]:
    """Return the image in `data` as uint8 [image_size, image_size], 0 black.

    `name` is for messages, and tells DICOM files without preamble by its suffix. 16-bit PNGs are
    scaled by their significant depth: the smallest of 8, 10, 12, 14, 16 bits that holds their
    brightest pixel (12-bit data is divided by 4095); of 16-bit colour PNGs the upper 8 bits are read.
    Refused with BadImageError: other formats,
    damaged, truncated, animated or empty files, colour and multi-frame DICOM, more than 64 million
    pixels (checked before decoding).
    """
    return decode(data, name=name, image_size=image_size).pixels_SS


def decode(data: bytes, *, name: str, image_size: int) -> Decoded:
    """Return the image in `data` with facts about the original; refusals as in `read_grey`."""
    with _quiet():
        return decode_in_silence(data, name=name, image_size=image_size)


def decode_in_silence(data: bytes, *, name: str, image_size: int) -> Decoded:
    """Do the same in a process that shows no warnings and no log anyway: silencing takes a while for each image."""
    if not 1 <= image_size <= MAX_SIDE:
        raise BadConfigError(f"image_size must lie in 1..{MAX_SIDE}, got {image_size}")
    if not data:
        raise BadImageError(f"{shown(name)} is empty (0 bytes)")
    try:
        grey_HW, bits = _grey(data, name)
        return _squash(grey_HW, bits, image_size)
    except BadImageError as fault:
        raise BadImageError(f"{shown(name)} {fault}") from None
    except MemoryError:
        raise BadImageError(f"{shown(name)} needs more memory than decoding may use") from None
    except (
        Exception
    ) as fault:  # decoders raise anything on hostile bytes; ours is the only error out
        reason = " ".join(f"{fault}".split())[:200] or type(fault).__name__
        raise BadImageError(f"{shown(name)} cannot be decoded: {reason}") from None


def refuse_too_many_pixels(width: int, height: int) -> None:
    """Raise BadImageError for sizes that no radiograph has; call it before decoding."""
    if width < 1 or height < 1:
        raise BadImageError(f"claims to be {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise BadImageError(
            f"is {width} x {height} pixels, more than the {MAX_PIXELS // 1_000_000} million that are "
            "decoded; scale it down first"
        )


def _grey(data: bytes, name: str) -> tuple[Grey, int]:
    """Return grey values and the significant depth."""
    if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return _raster(data)
    if data[128:132] == b"DICM" or name.lower().endswith((".dcm", ".dicom")):
        try:
            from ppdd_core.data.dicom import read_dicom  # pydicom takes 0.4 s to import
        except ImportError:
            raise BadImageError(
                "is DICOM, and nothing is installed here that reads it: pip install 'ppdd[dicom]'"
            ) from None
        return read_dicom(data)
    raise BadImageError("is not a PNG, JPEG or DICOM file")


def _raster(data: bytes) -> tuple[Grey, int]:
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        refuse_too_many_pixels(*image.size)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise BadImageError(f"holds {frames} pictures (animated); one image per file is needed")
        image.load()
        if image.mode == "L":
            width, height = image.size
            return np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(height, width), 8
        values_HW = _values(image)
    bits = _depth(int(values_HW.max())) if image.mode.startswith("I") else 8
    return values_HW / np.float32(2**bits - 1), bits


def _values(image: Image.Image) -> NDArray[np.float32]:
    if image.mode.startswith("I"):
        values_HW = np.asarray(image).astype(np.float32)
        if values_HW.min() < 0 or values_HW.max() > 65535:
            raise BadImageError("has grey values outside 0..65535")
        return values_HW
    if image.mode in {"1", "LA", "La"}:
        image = image.convert("L")
    elif image.mode not in {"L", "RGB"}:
        image = image.convert("RGB")
    return np.asarray(image.convert("F"), dtype=np.float32)


def _depth(brightest: int) -> int:
    return next(bits for bits in DEPTHS if brightest < 2**bits)


def _squash(grey_HW: Grey, bits: int, side: int) -> Decoded:
    height, width = grey_HW.shape
    if grey_HW.dtype == np.uint8 and grey_HW.shape == (side, side):
        pixels_SS = grey_HW.astype(np.uint8, copy=False)  # they would come back as they are
    else:
        grey_SS = _LEVELS[grey_HW] if grey_HW.dtype == np.uint8 else grey_HW
        if grey_HW.shape != (side, side):
            image = Image.fromarray(grey_SS)
            grey_SS = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
        pixels_SS = np.rint(np.clip(grey_SS, 0.0, 1.0) * 255.0).astype(np.uint8)
    counts = _counts(pixels_SS)
    sample = grey_HW[:: max(1, height // _SAMPLE), :: max(1, width // _SAMPLE)]
    if sample.dtype == np.uint8:
        whole = pixels_SS is grey_HW and sample.shape == grey_HW.shape
        extreme = _extreme_levels(counts if whole else _counts(sample))
    else:
        extreme = _extreme(sample, np.ones(sample.shape, dtype=np.uint32))
    return Decoded(pixels_SS, counts, width, height, bits, extreme)


def _counts(levels: NDArray[Any]) -> NDArray[np.uint32]:
    """Return how many pixels have each of the 256 levels. Pillow counts bytes twice as fast as numpy."""
    height, width = levels.shape
    image = Image.frombuffer("L", (width, height), levels.tobytes(), "raw", "L", 0, 1)
    return np.array(image.histogram(), dtype=np.uint32)


def _extreme_levels(counts: NDArray[np.uint32]) -> float:
    """Return the same as `_extreme` from the levels that occur: hundreds of numbers, not thousands."""
    at = counts.nonzero()[0]
    return _extreme(_LEVELS[at], counts[at])


def _extreme(values: NDArray[Any], weights: NDArray[np.uint32]) -> float:
    """Return the share of pixels within 3 % of the grey range from its ends; 0 for a blank image."""
    low, high = float(values.min()), float(values.max())
    if high - low < 2 / 255:
        return 0.0
    margin = 0.03 * (high - low)
    ends = (values <= low + margin) | (values >= high - margin)
    return float(weights[ends].sum() / weights.sum())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the decoders' own warnings and log lines to themselves: the outcome says enough."""
    log = logging.getLogger("pydicom")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)

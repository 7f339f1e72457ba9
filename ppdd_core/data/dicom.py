"""One DICOM file into grey values: what is accepted, and how stored values become brightness.

Stored value -> modality LUT or rescale -> VOI LUT or window -> [0, 1], MONOCHROME1 inverted (DICOM PS3.3
C.7.6.3, C.11.1, C.11.2; PS3.4 N.2). Other formats and the resize are in `images.py`.

Shape suffixes: H W the image.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_modality_lut, apply_voi
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ppdd_core.data.images import refuse_too_many_pixels
from ppdd_core.errors import BadImageError


def read_dicom(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Return grey values in [0, 1], float32 [H, W], 0 black, and the stored bits per pixel.

    A file without preamble or file meta information is read by force (Implicit VR Little Endian
    unless its first element shows another encoding). Without a VOI LUT or window the image's own
    range (padding left out) is stretched over [0, 1]. Raises BadImageError for colour, several
    frames, deflated data, missing pixel data and absurd sizes, all before pixels are decoded;
    pydicom's own errors on damaged files pass through, `images.decode` turns them into BadImageError.
    """
    dataset = _parse(data)
    _refuse_unusable(dataset)
    stored_HW = dataset.pixel_array
    if stored_HW.ndim != 2:
        raise BadImageError(f"decodes to {stored_HW.ndim} dimensions; one grey frame is needed")
    grey_HW = _display(stored_HW, dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey_HW = 1.0 - grey_HW
    return grey_HW.astype(np.float32), int(dataset.BitsStored)


def _parse(data: bytes) -> Dataset:
    # inflating is unbounded in pydicom, and no X-ray machine writes this
    if DeflatedExplicitVRLittleEndian.encode() in data[:4096]:
        raise BadImageError("is a deflated DICOM file; export it uncompressed or as JPEG 2000")
    dataset = pydicom.dcmread(io.BytesIO(data), force=data[128:132] != b"DICM")
    if "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
        implicit, little = dataset.original_encoding
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = (
            ExplicitVRBigEndian
            if not little
            else ImplicitVRLittleEndian
            if implicit in {True, None}
            else ExplicitVRLittleEndian
        )
    return dataset


def _refuse_unusable(dataset: Dataset) -> None:
    if "PixelData" not in dataset:
        raise BadImageError("is not a DICOM image (no pixel data)")
    missing = [
        name
        for name in ("Rows", "Columns", "BitsStored", "PhotometricInterpretation")
        if dataset.get(name) in {None, ""}
    ]
    if missing:
        raise BadImageError(f"lacks the DICOM attributes {', '.join(missing)}")
    refuse_too_many_pixels(int(dataset.Columns), int(dataset.Rows))
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadImageError(f"holds {frames} frames; only single X-ray images are read")
    photometric = str(dataset.PhotometricInterpretation)
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or photometric not in {
        "MONOCHROME1",
        "MONOCHROME2",
    }:
        raise BadImageError(f"is a colour image ({photometric[:24]}); only grey X-rays are read")
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        size = _stream_size(get_frame(dataset.PixelData, 0, number_of_frames=1))
        # equal sizes: then the bound above holds for the stream as well
        if size is not None and size != (int(dataset.Columns), int(dataset.Rows)):
            raise BadImageError(
                f"says {dataset.Columns} x {dataset.Rows} pixels, but its compressed data say "
                f"{size[0]} x {size[1]}"
            )


def _display(stored_HW: NDArray[np.generic], dataset: Dataset) -> NDArray[np.float64]:
    """Return brightness in [0, 1] as the file asks to be shown (before MONOCHROME1 is inverted)."""
    values_HW = apply_modality_lut(stored_HW, dataset)
    if "VOILUTSequence" in dataset and len(dataset.VOILUTSequence):
        out_bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        shown_HW = apply_voi(values_HW, dataset).astype(np.float64)
        return np.asarray(np.clip(shown_HW / (2**out_bits - 1), 0.0, 1.0))
    values_HW = values_HW.astype(np.float64)
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    if centre is not None and width is not None:
        function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
        return window(values_HW, centre=centre, width=width, function=function)
    real_HW = np.ones(values_HW.shape, dtype=bool)
    if dataset.get("PixelPaddingValue") is not None:
        real_HW = stored_HW != int(dataset.PixelPaddingValue)
    if not real_HW.any():
        raise BadImageError("holds nothing but padding")
    low, high = float(values_HW[real_HW].min()), float(values_HW[real_HW].max())
    if high == low:
        return np.zeros_like(values_HW)
    return np.clip((values_HW - low) / (high - low), 0.0, 1.0)


def window(
    values_HW: NDArray[np.float64], *, centre: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float64]:
    """Return `values_HW` through a VOI window as brightness in [0, 1] (PS3.3 C.11.2.1.2, C.11.2.1.3).

    Raises BadImageError for a width the standard forbids or an unknown function.
    """
    if not np.isfinite([centre, width]).all() or width < (1 if function == "LINEAR" else 1e-9):
        raise BadImageError(f"has an impossible window (centre {centre:g}, width {width:g})")
    if function == "LINEAR_EXACT":
        return np.clip((values_HW - centre) / width + 0.5, 0.0, 1.0)
    if function == "SIGMOID":
        bounded = np.clip(-4.0 * (values_HW - centre) / width, -700.0, 700.0)
        return np.asarray(1.0 / (1.0 + np.exp(bounded)))
    if function != "LINEAR":
        raise BadImageError(f"has an unknown VOI LUT function {function[:24]!r}")
    if width == 1:  # a step at centre - 0.5; the ramp below would divide by zero
        return np.where(values_HW > centre - 0.5, 1.0, 0.0)
    return np.clip((values_HW - (centre - 0.5)) / (width - 1) + 0.5, 0.0, 1.0)


def _first(dataset: Dataset, name: str) -> float | None:
    value = dataset.get(name)
    if value is None or value == "":
        return None
    try:
        return float(value[0])  # several windows: the first is the default
    except TypeError:
        return float(value)


def _stream_size(frame: bytes) -> tuple[int, int] | None:
    """Return (width, height) as a JPEG, JPEG-LS or JPEG 2000 stream states it; None for others.

    The DICOM header bounds nothing: decoders believe the stream inside.
    """
    if frame[:4] == b"\xff\x4f\xff\x51" and len(frame) >= 24:  # SOC, SIZ
        right, bottom, left, top = struct.unpack(">4I", frame[8:24])
        return right - left, bottom - top
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        # SOF0..SOF15 without DHT, JPG, DAC; F7 is JPEG-LS
        if (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}) or marker == 0xF7:
            height, width = struct.unpack(">2H", frame[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None

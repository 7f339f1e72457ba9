import io
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_windowing
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from ppdd_core.data.dicom import window
from ppdd_core.data.images import decode, read_grey
from ppdd_core.errors import BadConfigError, BadImageError


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png16(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )


def dicom(
    pixels: np.ndarray,
    *,
    bits: int = 12,
    syntax: UID = ExplicitVRLittleEndian,
    meta: bool = True,
    photometric: str = "MONOCHROME2",
    **attributes: object,
) -> bytes:
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelData = pixels.astype("<u2").tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    if syntax.is_encapsulated:
        dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    if meta:
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(out, enforce_file_format=True)
    else:
        del dataset.file_meta
        pydicom.dcmwrite(out, dataset, implicit_vr=True, little_endian=True)
    return out.getvalue()


RAMP = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    got = read_grey(encoded(Image.fromarray(pixels)), name="a.png", image_size=16)
    assert got.dtype == np.uint8
    assert np.array_equal(got, pixels)


def test_a_whole_wide_image_is_squashed_not_cropped() -> None:
    pixels = np.zeros((16, 64), dtype=np.uint8)
    pixels[:, :8] = 255  # the left eighth
    got = read_grey(encoded(Image.fromarray(pixels)), name="a.png", image_size=16)
    assert (got[:, 0] == 255).all()
    assert (got[:, 4:] == 0).all()


def test_shrinking_is_antialiased() -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    got = read_grey(encoded(Image.fromarray(board.astype(np.uint8))), name="a.png", image_size=8)
    assert np.abs(got.astype(int) - 127).max() <= 12


@pytest.mark.parametrize(
    ("brightest", "bits"),
    [(255, 8), (256, 10), (1023, 10), (4000, 12), (16383, 14), (16384, 16), (65535, 16)],
)
def test_16_bit_files_are_scaled_by_their_significant_depth(brightest: int, bits: int) -> None:
    values = np.linspace(0, brightest, 64).round().reshape(8, 8)
    got = decode(png16(values), name="a.png", image_size=8)
    assert got.bits == bits
    assert np.array_equal(got.pixels_SS, np.rint(values / (2**bits - 1) * 255).astype(np.uint8))


def test_16_bit_files_are_averaged_before_rounding() -> None:
    values = np.tile(
        [100, 100, 100, 300], (16, 4)
    )  # 0.6 grey levels on average, 0.25 if rounded first
    values[15, 15] = 65535
    assert read_grey(png16(values), name="a.png", image_size=4)[1, 1] == 1


def test_colour_becomes_luma_and_alpha_is_ignored() -> None:
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    expected = round(0.299 * 200)
    glass = red.copy()
    glass.putalpha(7)
    for image in (red, glass, red.quantize(4)):
        assert (read_grey(encoded(image), name="a.png", image_size=4) == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_every_png_mode_is_read(mode: str) -> None:
    image = Image.new(mode, (8, 8))
    assert (read_grey(encoded(image), name="a.png", image_size=4) == 0).all()


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_jpeg_mode_is_read(mode: str) -> None:
    image = Image.new("L", (8, 8), 90).convert("RGB").convert(mode)
    got = read_grey(encoded(image, "JPEG", quality=95), name="a.jpg", image_size=4)
    assert np.abs(got.astype(int) - 90).max() <= 4


PHOTO = Image.effect_noise((32, 32), 50)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"GIF89a" + bytes(99), "not a PNG, JPEG or DICOM", id="other format"),
        pytest.param(encoded(PHOTO, "BMP"), "not a PNG, JPEG or DICOM", id="bmp"),
        pytest.param(encoded(PHOTO)[:400], "cannot be decoded", id="truncated png"),
        pytest.param(encoded(PHOTO, "JPEG")[:400], "cannot be decoded", id="truncated jpeg"),
        pytest.param(encoded(PHOTO)[:8], "cannot be decoded", id="png magic only"),
        pytest.param(
            encoded(PHOTO, save_all=True, append_images=[Image.new("L", (32, 32))]),
            "animated",
            id="animated",
        ),
        pytest.param(bomb(60_000, 60_000), "pixels", id="png bomb"),
        pytest.param(bomb(10_000, 10_000), "10000 x 10000 pixels", id="png above our bound only"),
        pytest.param(bomb(2**31 - 1, 2**31 - 1), "pixels", id="png of absurd size"),
    ],
)
def test_bad_files_are_refused_with_their_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason) as caught:
        read_grey(data, name="some/name.png", image_size=8)
    assert "some/name.png" in str(caught.value)


def test_an_impossible_image_size_is_refused() -> None:
    for size in (0, 5000):
        with pytest.raises(BadConfigError, match="image_size"):
            read_grey(encoded(PHOTO), name="a.png", image_size=size)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_raise_our_error_or_none(data: st.DataObject) -> None:
    whole = data.draw(st.sampled_from([encoded(PHOTO), encoded(PHOTO, "JPEG"), dicom(RAMP)]))
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        got = read_grey(bytes(damaged), name="a.dcm", image_size=8)
    except BadImageError:
        return
    assert got.shape == (8, 8)


def test_dicom_is_stretched_over_its_own_range_without_a_window() -> None:
    got = decode(dicom(RAMP // 2 + 100), name="a.dcm", image_size=8)
    assert got.bits == 12
    assert np.array_equal(got.pixels_SS, np.rint((RAMP // 2) / 2047 * 255).astype(np.uint8))


def test_monochrome1_is_inverted() -> None:
    two = read_grey(dicom(RAMP), name="a.dcm", image_size=8)
    one = read_grey(dicom(RAMP, photometric="MONOCHROME1"), name="a.dcm", image_size=8)
    assert np.abs(one.astype(int) + two - 255).max() <= 1


def test_padding_does_not_count_for_the_range() -> None:
    values = RAMP // 4 + 1000
    values[0, 0] = 4095
    got = read_grey(dicom(values, PixelPaddingValue=4095), name="a.dcm", image_size=8)
    assert got[0, 0] == 255
    assert got.min() == 0
    assert got[7, 7] == 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_agrees_with_pydicom(function: str) -> None:
    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsStored, dataset.VOILUTFunction = 12, function
    dataset.WindowCenter, dataset.WindowWidth = 1800, 900
    expected = apply_windowing(RAMP, dataset) / 4095
    got = window(RAMP.astype(np.float64), centre=1800, width=900, function=function)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_rescale_and_the_first_window_are_applied() -> None:
    data = dicom(
        RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=[1000, 5], WindowWidth=[1001, 5]
    )
    expected = np.clip((RAMP * 2.0 - 1000 - 999.5) / 1000 + 0.5, 0, 1) * 255
    assert np.array_equal(
        read_grey(data, name="a", image_size=8), np.rint(expected).astype(np.uint8)
    )


def test_a_voi_lut_comes_before_a_window() -> None:
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = (
        [4096, 0, 16],
        (65535 - 16 * np.arange(4096)).astype("<u2").tobytes(),
    )
    data = dicom(RAMP, VOILUTSequence=[lut], WindowCenter=5, WindowWidth=5)
    got = read_grey(data, name="a.dcm", image_size=8)
    assert got[0, 0] == 255
    assert got[7, 7] == 0


def test_a_file_without_preamble_is_read_by_force() -> None:
    bare = dicom(RAMP, syntax=ImplicitVRLittleEndian, meta=False)
    assert bare[128:132] != b"DICM"
    whole = read_grey(dicom(RAMP), name="a", image_size=8)
    assert np.array_equal(read_grey(bare, name="a.dcm", image_size=8), whole)


def stream(width: int, height: int) -> bytes:
    """A JPEG 2000 stream that claims a size."""
    return b"\xff\x4f\xff\x51" + struct.pack(">2H4I", 47, 0, width, height, 0, 0) + bytes(64)


def test_jpeg_inside_dicom_is_read_and_its_own_size_is_checked() -> None:
    picture = Image.linear_gradient("L").resize((32, 16))
    inside = encoded(picture, "JPEG", quality=95)
    facts: dict[str, Any] = {
        "BitsAllocated": 8,
        "WindowCenter": 128,
        "WindowWidth": 256,
        "PixelData": encapsulate([inside]),
    }
    grey = np.zeros((16, 32), dtype=np.uint16)
    got = read_grey(dicom(grey, bits=8, syntax=JPEGBaseline8Bit, **facts), name="a", image_size=8)
    plain = read_grey(inside, name="a.jpg", image_size=8)
    assert np.abs(got.astype(int) - plain).max() <= 2
    with pytest.raises(BadImageError, match="compressed data say 32 x 16"):
        read_grey(dicom(grey.T, bits=8, syntax=JPEGBaseline8Bit, **facts), name="a", image_size=8)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(dicom(np.stack([RAMP, RAMP]), NumberOfFrames=2), "2 frames", id="multi-frame"),
        pytest.param(dicom(RAMP, photometric="RGB", SamplesPerPixel=3), "colour", id="colour"),
        pytest.param(dicom(RAMP, photometric="PALETTE COLOR"), "colour", id="palette"),
        pytest.param(dicom(RAMP)[:-40], "cannot be decoded", id="truncated"),
        pytest.param(dicom(RAMP, Rows=60000, Columns=60000), "60000 x 60000", id="absurd size"),
        pytest.param(dicom(RAMP, WindowCenter=1, WindowWidth=0), "window", id="impossible window"),
        pytest.param(dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian), "deflated", id="deflated"),
        pytest.param(b"nothing of the kind" * 20, "DICOM", id="no dicom at all"),
        pytest.param(
            dicom(RAMP, syntax=JPEG2000Lossless, PixelData=encapsulate([stream(60_000, 60_000)])),
            "60000 x 60000",
            id="bomb inside the compressed data",
        ),
        pytest.param(
            dicom(RAMP, syntax=JPEG2000Lossless, PixelData=encapsulate([stream(16, 8)])),
            "its compressed data say 16 x 8",
            id="sizes that disagree",
        ),
    ],
)
def test_unusable_dicom_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        read_grey(data, name="x.dcm", image_size=8)


def test_decoding_keeps_warnings_to_itself_and_restores_the_filters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        odd = dicom(RAMP, PatientBirthDate="not a date", WindowCenter="1e3", WindowWidth="1" * 20)
    before = list(warnings.filters)
    read_grey(odd, name="a.dcm", image_size=8)
    assert list(warnings.filters) == before

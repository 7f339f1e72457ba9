from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ppdd_core.errors import PackageError
from ppdd_core.package.previews import check_png, draw_contact_sheet, draw_image, read_image

GREY_IHW = np.random.default_rng(0).integers(0, 256, (7, 16, 16), dtype=np.uint8)


def sheet(**changes: object) -> bytes:
    arguments: dict[str, object] = {"title": "a/b 1.0.0", "note": "synthetic"} | changes
    return draw_contact_sheet(
        GREY_IHW,
        [0, 0, 0, 0, 1, 1, 1],
        ("COVID", "Normal"),
        **arguments,  # type: ignore[arg-type]
    )


def chunks(data: bytes) -> list[bytes]:
    kinds, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kinds.append(data[position + 4 : position + 8])
        position += 12 + length
    return kinds


def test_pictures_carry_pixels_and_nothing_else() -> None:
    for data in (draw_image(GREY_IHW[0]), sheet()):
        assert set(chunks(data)) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_same_images_give_the_same_bytes() -> None:
    assert draw_image(GREY_IHW[0]) == draw_image(GREY_IHW[0].copy())
    assert sheet() == sheet()
    assert sheet() != sheet(title="a/b 1.0.1")


def test_a_preview_reads_back_exactly() -> None:
    assert np.array_equal(read_image(draw_image(GREY_IHW[3]), name="x"), GREY_IHW[3])


def test_the_sheet_shows_every_image_in_its_row() -> None:
    pixels = np.asarray(Image.open(io.BytesIO(sheet())))
    side = 6 * 16  # enlarged by a whole factor
    found = []
    for grey in GREY_IHW:
        large = np.kron(grey, np.ones((6, 6), np.uint8))
        rows, columns = np.nonzero(
            (pixels[: -side + 1, : -side + 1] == large[0, 0])
            & (pixels[side - 1 :, side - 1 :] == large[-1, -1])
        )
        at = [
            (int(row), int(column))
            for row, column in zip(rows, columns, strict=True)
            if np.array_equal(pixels[row : row + side, column : column + side], large)
        ]
        assert len(at) == 1
        found.append(at[0])
    assert len({row for row, _ in found[:4]}) == len({row for row, _ in found[4:]}) == 1
    assert found[4][0] > found[0][0]
    assert [column for _, column in found[:4]] == sorted(column for _, column in found[:4])


@pytest.mark.parametrize("name", ["<b>COVID</b>", "x" * 100, "\u80ba\u708e", "A"])
def test_any_class_name_can_be_drawn(name: str) -> None:
    data = draw_contact_sheet(GREY_IHW[:2], [0, 1], (name, "Normal"), title=name * 3, note=name)
    width, height = check_png(data, name="x")
    assert 300 < width < 1500 and 200 < height < 1000


def test_many_and_large_images_stay_within_bounds() -> None:
    many = np.zeros((3000, 8, 8), np.uint8)
    data = draw_contact_sheet(many, [0, 1] * 1500, ("a", "b"), title="t", note="n")
    assert max(check_png(data, name="x")) <= 8192
    large = draw_contact_sheet(
        np.zeros((2, 512, 512), np.uint8), [0, 1], ("a", "b"), title="t", note="n"
    )
    assert max(check_png(large, name="x")) < 1000


def png(mode: str = "L", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (16, 16)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>Jane Doe</x:xmpmeta>")
    return png(pnginfo=info)


def resized(width: int, height: int, kind: bytes = b"") -> Callable[[bytes], bytes]:
    def plant(data: bytes) -> bytes:
        body = struct.pack(">LL", width, height) + (kind or data[24:29])
        checksum = struct.pack(">L", zlib.crc32(b"IHDR" + body))
        return data[:16] + body + checksum + data[33:]

    return plant


def smuggle(data: bytes) -> bytes:
    position = data.index(b"IDAT")
    length = int.from_bytes(data[position - 4 : position], "big")
    body = data[position + 4 : position + 4 + length] + b"Jane Doe, 1957"
    chunk = b"IDAT" + body
    return b"".join(
        (
            data[: position - 4],
            struct.pack(">L", len(body)),
            chunk,
            struct.pack(">L", zlib.crc32(chunk)),
            data[position + 8 + length :],
        )
    )


def flipped(data: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[50] ^= 1
    return bytes(damaged)


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(lambda _: with_text(), id="XMP"),
        pytest.param(lambda _: png(icc_profile=b"profile"), id="ICC profile"),
        pytest.param(lambda _: png(dpi=(96, 96)), id="resolution"),
        pytest.param(lambda _: png("RGB"), id="colour"),
        pytest.param(lambda _: png("I;16"), id="16 bit"),
        pytest.param(lambda _: png("1"), id="1 bit"),
        pytest.param(resized(100_000, 100_000), id="bomb"),
        pytest.param(resized(0, 16), id="no width"),
        pytest.param(lambda _: draw_image(np.zeros((1, 8193), np.uint8)), id="too wide"),
        pytest.param(resized(16, 16, b"\x08\x00\x00\x01\x00"), id="unknown filter method"),
        pytest.param(lambda data: b"\x89PNX" + data[4:], id="another signature"),
        pytest.param(lambda data: data[:-1] + b"\x83", id="wrong checksum at the end"),
        pytest.param(resized(16, 4000), id="taller than its pixels"),
        pytest.param(smuggle, id="bytes behind the pixels"),
        pytest.param(flipped, id="flipped bit"),
        pytest.param(lambda data: data[:-6], id="cut off"),
        pytest.param(lambda data: data[:-12], id="no end"),
        pytest.param(lambda data: data + b"\0", id="bytes behind"),
        pytest.param(lambda data: data[:8] + data[33:], id="no header"),
        pytest.param(lambda data: data[:33] + data[8:33] + data[33:], id="two headers"),
        pytest.param(lambda _: b"GIF89a" + bytes(40), id="GIF"),
        pytest.param(lambda _: b"", id="empty"),
    ],
)
def test_refuses_a_picture(plant: Callable[[bytes], bytes]) -> None:
    data = draw_image(GREY_IHW[0])
    read_image(data, name="x")
    with pytest.raises(PackageError, match="picture"):
        read_image(plant(data), name="picture")

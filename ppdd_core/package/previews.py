"""Pictures for people: one PNG per image, and one contact sheet with a labelled row per class.

Torch-free: grey uint8 arrays in, PNG bytes out, the same bytes for the same input. A PNG of a package holds
only what is needed to draw it: no text, time, profile or EXIF chunk, in or out.

Shape suffixes: I synthetic images, H W height width.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from ppdd_core.errors import PackageError

Grey = npt.NDArray[np.uint8]

MAX_SIDE = 8192
MAX_SHEET_BYTES = 72 * 2**20  # pixels of the largest sheet that cannot be packed, and a little
MAX_IMAGE_BYTES = (
    4 * 2**20
)  # of one image's PNG; the largest image of a recipe has 256 KiB of pixels
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLUMNS = 10  # images of one class beside each other, then the row goes on below
_CELL = 96  # smallest drawn side; smaller images are enlarged by a whole factor
_GAP, _MARGIN = 6, 24
_PIECE = 2**16  # bytes that are unpacked at a time
_PAPER, _INK, _FAINT = 250, 25, 110


def draw_image(grey_HW: Grey) -> bytes:
    """Return one image as a grey 8-bit PNG."""
    return _to_png(Image.fromarray(np.ascontiguousarray(grey_HW)))


def draw_contact_sheet(
    grey_IHW: Grey,
    label_of_image_I: Sequence[int],
    classes: Sequence[str],
    *,
    title: str,
    note: str,
) -> bytes:
    """Return a PNG of all images: a row per class with its name, `title` above and `note` below.

    Very large sets are shrunk, and cut after as many rows as fit MAX_SIDE pixels.
    """
    side = grey_IHW.shape[-1]
    factor = max(1, round(_CELL / side))
    cell = side * factor
    if cell > 160:
        factor, cell = 1, 160
    heading, body, small = _font(22), _font(16), _font(13)
    rows = _rows(label_of_image_I, classes)
    columns = max(len(images) for _, images in rows)
    names = max(body.getlength(_fit(name, body, 220)) for name, _ in rows)
    left = _MARGIN + int(names) + 16
    width = max(left + columns * (cell + _GAP) - _GAP + _MARGIN, 560)
    top = _MARGIN + 44
    rows = rows[: max(1, (MAX_SIDE - top - 60) // (cell + _GAP))]
    height = top + len(rows) * (cell + _GAP) - _GAP + 44
    sheet = Image.new("L", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN - 4), _fit(title, heading, width - 2 * _MARGIN), _INK, heading)
    for row, (name, images) in enumerate(rows):
        y = top + row * (cell + _GAP)
        shown = _fit(name, body, 220)
        draw.text((left - 16 - body.getlength(shown), y + cell / 2), shown, _INK, body, anchor="lm")
        for column, index in enumerate(images):
            picture = Image.fromarray(np.ascontiguousarray(grey_IHW[index]))
            method = Image.Resampling.BOX if side > cell else Image.Resampling.NEAREST
            sheet.paste(picture.resize((cell, cell), method), (left + column * (cell + _GAP), y))
    draw.text((_MARGIN, height - 28), _fit(note, small, width - 2 * _MARGIN), _FAINT, small)
    return _to_png(sheet)


def check_png(data: bytes, *, name: str) -> tuple[int, int]:
    """Return (width, height) of a grey 8-bit PNG that is whole and holds its pixels and nothing else.

    PackageError on anything else: other formats, wrong checksums, any chunk beside IHDR, IDAT and IEND, bytes
    hidden behind the image or behind its pixels, fewer pixels than it says, sides above MAX_SIDE.
    """
    if not data.startswith(_SIGNATURE):
        raise PackageError(f"{name} is not a PNG image")
    position = len(_SIGNATURE)
    kinds: list[bytes] = []
    header, packed = b"", bytearray()
    while position < len(data) and b"IEND" not in kinds:
        length = int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        checksum = data[position + 8 + length : position + 12 + length]
        if len(body) != length or checksum != struct.pack(">L", zlib.crc32(kind + body)):
            raise PackageError(
                f"{name} is damaged: a piece of it is cut off or does not fit its checksum"
            )
        if kind not in (b"IHDR", b"IDAT", b"IEND"):
            raise PackageError(
                f"{name} carries a {kind!a} chunk; previews hold pixels and nothing else"
            )
        if (kind == b"IHDR") == bool(kinds) or (kind == b"IHDR" and length != 13):
            raise PackageError(f"{name} does not begin with its size")
        header = body if kind == b"IHDR" else header
        packed += body if kind == b"IDAT" else b""
        kinds.append(kind)
        position += 12 + length
    if kinds[-1:] != [b"IEND"] or position != len(data):
        raise PackageError(f"{name} is damaged: it does not end where an image ends")
    width, height, *kind_of_pixels = struct.unpack(">LL5B", header)
    if kind_of_pixels != [8, 0, 0, 0, 0]:
        raise PackageError(f"{name} is not a plain 8-bit grey image")
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise PackageError(f"{name} is {width} x {height} pixels; at most {MAX_SIDE} are allowed")
    _check_pixels(packed, (width + 1) * height, name)
    return width, height


def _check_pixels(packed: bytearray, wanted: int, name: str) -> None:
    stream = zlib.decompressobj()
    unpacked = 0
    try:
        for start in range(0, len(packed), _PIECE):
            rest: bytes | bytearray = packed[start : start + _PIECE]
            while rest and unpacked <= wanted:
                unpacked += len(stream.decompress(rest, 2**20))
                rest = stream.unconsumed_tail
    except zlib.error as err:
        raise PackageError(f"{name} is damaged: {err}") from err
    if unpacked != wanted or not stream.eof or stream.unused_data:
        raise PackageError(f"{name} holds more or fewer bytes than its pixels need")


def read_image(data: bytes, *, name: str) -> Grey:
    """Return the pixels [H, W] of a PNG that passes `check_png`; anything else is a PackageError."""
    width, height = check_png(data, name=name)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        raise PackageError(f"{name} cannot be decoded: {err}") from err
    if pixels.shape != (height, width):
        raise PackageError(f"{name} cannot be decoded to the size it says")
    return pixels


def _rows(label_of_image_I: Sequence[int], classes: Sequence[str]) -> list[tuple[str, list[int]]]:
    rows: list[tuple[str, list[int]]] = []
    for index, name in enumerate(classes):
        images = [image for image, label in enumerate(label_of_image_I) if label == index]
        for start in range(0, len(images), _COLUMNS):
            rows.append((name if start == 0 else "", images[start : start + _COLUMNS]))
    return rows or [("", [])]


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise PackageError(
            "Pillow was built without FreeType, which draws the contact sheet's text"
        )
    return font


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()

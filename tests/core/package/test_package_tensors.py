from __future__ import annotations

import dataclasses
import json
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from safetensors.torch import load as load_with_library

from ppdd_core.errors import PackageError
from ppdd_core.package.build import PackageContent
from ppdd_core.package.tensors import (
    StoredTensors,
    find_faults,
    open_tensors,
    read_labels,
    read_tensors,
    to_grey_IHW,
    write_tensors,
)


@pytest.fixture
def data(content: PackageContent) -> bytes:
    return write_tensors(content.distilled, "float32")


def assemble(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def good() -> tuple[dict[str, Any], bytes]:
    header = {
        "images": {"dtype": "F32", "shape": [2, 1, 8, 8], "data_offsets": [0, 512]},
        "labels": {"dtype": "I64", "shape": [2], "data_offsets": [512, 528]},
        "learning_rate": {"dtype": "F32", "shape": [1], "data_offsets": [528, 532]},
    }
    return header, bytes(532)


def test_reads_what_the_library_reads(data: bytes, content: PackageContent) -> None:
    arrays, wanted = read_tensors(data), load_with_library(data)
    assert np.array_equal(arrays.images_ICHW, wanted["images"].numpy())
    assert np.array_equal(arrays.labels, wanted["labels"].numpy())
    assert arrays.learning_rate == wanted["learning_rate"].item()
    assert torch.equal(wanted["images"], content.distilled.images)
    assert find_faults(arrays, classes=3) == []


def test_float16_keeps_three_digits_and_overflow_is_named(content: PackageContent) -> None:
    arrays = read_tensors(write_tensors(content.distilled, "float16"))
    assert arrays.images_ICHW.dtype == np.float16
    error = np.abs(arrays.images_ICHW.astype(np.float32) - content.distilled.images.numpy())
    assert error.max() < 2**-10 * 4
    loud = dataclasses.replace(content.distilled, images=content.distilled.images * 1e6)
    faults = find_faults(read_tensors(write_tensors(loud, "float16")), classes=3)
    assert [code for code, _ in faults] == ["image_not_finite"]


def test_soft_labels_keep_their_shape_and_strongest_class(soft_content: PackageContent) -> None:
    arrays = read_tensors(write_tensors(soft_content.distilled, "float32"))
    assert arrays.labels.shape == (6, 3)
    assert arrays.label_of_image_I.tolist() == [0, 0, 1, 1, 2, 2]
    assert find_faults(arrays, classes=3) == []
    assert [code for code, _ in find_faults(arrays, classes=4)] == ["label_out_of_range"]


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_soft_labels_must_be_plausible_numbers(value: float) -> None:
    labels = np.full((2, 3), 0.3, "<f4")
    labels[1, 1] = value
    images, rate = np.zeros((2, 1, 8, 8), "<f4"), np.ones(1, "<f4")
    data = save({"images": images, "labels": labels, "learning_rate": rate})
    assert [code for code, _ in find_faults(read_tensors(data), classes=3)] == ["label_not_finite"]


def test_grey_is_the_normalisation_undone_and_clipped() -> None:
    header, _ = good()
    images = np.zeros((2, 1, 8, 8), "<f4")
    images[0, 0, 0, :4] = [0.0, 1.0, 9.0, -9.0]
    images[1, 0, 0, 0] = np.nan
    arrays = read_tensors(assemble(header, images.tobytes() + bytes(20)))
    grey = to_grey_IHW(arrays.images_ICHW, mean=0.5, std=0.25)
    assert grey.dtype == np.uint8
    assert grey[0, 0, :4].tolist() == [128, 191, 255, 0]
    assert grey[1, 0, 0] == 0


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def plant(header: dict[str, Any]) -> None:
        name, field = path.split("/")
        header[name][field] = value

    return plant


@pytest.mark.parametrize(
    "plant",
    [
        pytest.param(change("images/dtype", "F64"), id="type too wide"),
        pytest.param(change("images/dtype", "BF16"), id="type numpy lacks"),
        pytest.param(change("images/dtype", ["F32"]), id="type no text"),
        pytest.param(change("images/shape", [2, 1, 8, 9]), id="shape beyond the bytes"),
        pytest.param(change("images/shape", [-2, -1, 8, 8]), id="negative shape"),
        pytest.param(change("images/shape", [2.0, 1, 8, 8]), id="fractional shape"),
        pytest.param(change("images/shape", [2**32, 2**31, 1, 1]), id="shape that overflows"),
        pytest.param(change("images/shape", [128]), id="flat images"),
        pytest.param(change("images/shape", [0, 1, 8, 8]), id="no images"),
        pytest.param(change("images/shape", [1] * 6), id="too many sides"),
        pytest.param(change("images/data_offsets", [0, 2**40]), id="beyond the file"),
        pytest.param(change("images/data_offsets", [512, 0]), id="backwards"),
        pytest.param(change("images/data_offsets", [0, 512, 528]), id="three offsets"),
        pytest.param(change("labels/data_offsets", [0, 16]), id="overlapping"),
        pytest.param(change("labels/dtype", "F32"), id="labels as floats"),
        pytest.param(change("labels/shape", [1]), id="too few labels"),
        pytest.param(change("learning_rate/shape", []), id="learning rate a scalar"),
        pytest.param(lambda h: h.update(__metadata__={"a": "b"}), id="metadata"),
        pytest.param(lambda h: h.pop("labels"), id="no labels"),
        pytest.param(lambda h: h["images"].update(extra=1), id="unknown field"),
        pytest.param(lambda h: h.update(images=[]), id="entry no object"),
    ],
)
def test_refuses_a_header(plant: Callable[[dict[str, Any]], object]) -> None:
    header, body = good()
    read_tensors(assemble(header, body))
    plant(header)
    with pytest.raises(PackageError, match="distilled.safetensors"):
        read_tensors(assemble(header, body))


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"images": np.zeros((2, 1, 8, 8), "<i8")}, id="images as whole numbers"),
        pytest.param({"images": np.zeros((2, 8, 8), "<f4")}, id="images without channels"),
        pytest.param({"images": np.zeros((2, 1, 0, 8), "<f4")}, id="images without pixels"),
        pytest.param({"labels": np.zeros(3, "<i8")}, id="more labels than images"),
        pytest.param({"labels": np.zeros(2, "<f4")}, id="hard labels as floats"),
        pytest.param({"labels": np.zeros((2, 3), "<i8")}, id="soft labels as whole numbers"),
        pytest.param({"labels": np.zeros((2, 0), "<f4")}, id="soft labels without classes"),
        pytest.param({"learning_rate": np.zeros(2, "<f4")}, id="two learning rates"),
        pytest.param({"learning_rate": np.zeros(1, "<f2")}, id="learning rate as float16"),
    ],
)
def test_refuses_tensors_that_fit_their_bytes_but_not_the_format(
    changed: dict[str, np.ndarray],
) -> None:
    arrays = {
        "images": np.zeros((2, 1, 8, 8), "<f4"),
        "labels": np.zeros(2, "<i8"),
        "learning_rate": np.ones(1, "<f4"),
    }
    read_tensors(save(arrays))
    with pytest.raises(PackageError, match="must be"):
        read_tensors(save({**arrays, **changed}))


def gap() -> bytes:
    header, body = good()
    for name in ("labels", "learning_rate"):
        header[name]["data_offsets"] = [offset + 8 for offset in header[name]["data_offsets"]]
    return assemble(header, body + bytes(8))


def padded(before: bytes, behind: bytes) -> bytes:
    header, body = good()
    return assemble(before + json.dumps(header).encode() + behind, body)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x10\x00", id="cut in the length"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", id="absurd length"),
        pytest.param(struct.pack("<Q", 50) + b"{}", id="length beyond the file"),
        pytest.param(padded(b" ", b""), id="header begins with a space"),
        pytest.param(padded(b"", b" " * 70_000), id="header with too much room"),
        pytest.param(assemble(b"{}", b""), id="no tensors"),
        pytest.param(assemble(b'{"images":1,"images":2}', b""), id="repeated name"),
        pytest.param(assemble(b'{"a":' * 30 + b"1" + b"}" * 30, b""), id="nested"),
        pytest.param(assemble(b"{" + b" " * 70_000 + b"}", b""), id="long header"),
        pytest.param(assemble(good()[0], good()[1] + b"x"), id="bytes behind"),
        pytest.param(assemble(good()[0], good()[1][:-1]), id="cut off"),
        pytest.param(gap(), id="gap between tensors"),
        pytest.param(b"PK\x03\x04" + bytes(100), id="a ZIP"),
        pytest.param(b"\x80\x04\x95" + bytes(100), id="a pickle"),
    ],
)
def test_refuses_bytes(data: bytes) -> None:
    with pytest.raises(PackageError, match="distilled.safetensors"):
        read_tensors(data)


@settings(max_examples=150, deadline=None)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_file_never_raises_anything_but_ours(position: int, byte: int) -> None:
    damaged = bytearray(assemble(*good()))
    damaged[position % len(damaged)] = byte
    try:
        arrays = read_tensors(bytes(damaged))
    except PackageError:
        return
    assert arrays.images_ICHW.shape == (2, 1, 8, 8)


def parts_of(data: bytes) -> Callable[[int, int], bytes]:
    return lambda start, length: data[start : start + length]


@pytest.mark.parametrize("kind", ["content", "soft_content"])
def test_labels_are_read_without_the_images(kind: str, request: pytest.FixtureRequest) -> None:
    data = write_tensors(request.getfixturevalue(kind).distilled, "float16")
    assert read_labels(parts_of(data)) == list(read_tensors(data).label_of_image_I)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (3).to_bytes(8, "little") + b"{]}",
    ],
)
def test_labels_of_something_else_are_refused(data: bytes) -> None:
    with pytest.raises(PackageError):
        read_labels(parts_of(data))


def test_labels_that_are_cut_off_are_refused(content: PackageContent) -> None:
    data = write_tensors(content.distilled, "float16")
    with pytest.raises(PackageError):
        read_labels(lambda start, length: data[start : start + length][:-1])


# --- part by part ----------------------------------------------------------------------------------------


def test_parts_of_a_file_are_what_the_whole_file_is(content: PackageContent) -> None:
    data = write_tensors(content.distilled, "float16")
    whole = read_tensors(data)
    stored = open_tensors(lambda start, length: data[start : start + length], len(data))
    assert stored.shape_ICHW == whole.images_ICHW.shape
    assert (stored.labels == whole.labels).all() and stored.learning_rate == whole.learning_rate
    for one in (stored, whole):
        parts = list(one.parts())
        assert np.array_equal(np.concatenate([images for _, images in parts]), whole.images_ICHW)


def test_values_are_looked_at_without_holding_them_all() -> None:
    shape, size = (64, 1, 1024, 1024), 4 * 2**20  # 256 MiB
    late = np.full((1, 1024, 1024), np.nan, "<f4").tobytes()

    def read(start: int, length: int) -> bytes:
        first = start // size
        return b"".join(
            late if number == 63 else bytes(size) for number in range(first, first + length // size)
        )

    labels = np.zeros(64, "<i8")
    stored = StoredTensors(shape, np.dtype("<f4"), labels, 0.01, begin=0, read=read)
    tracemalloc.start()
    try:
        faults = find_faults(stored, classes=2)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert faults == [("image_not_finite", "images 63 hold values that are not finite")]
    assert peak < 96 * 2**20


def test_a_file_that_shrinks_meanwhile_is_refused(content: PackageContent) -> None:
    data = write_tensors(content.distilled, "float32")
    stored = open_tensors(lambda start, length: data[start : start + length], len(data))
    short = dataclasses.replace(stored, read=lambda start, length: data[start : start + length - 1])
    with pytest.raises(PackageError, match="changed while it was read"):
        list(short.parts())


@pytest.mark.parametrize(
    ("shape", "columns", "said"),
    [((1, 1, 4096, 4096), 2, "one image"), ((2, 1, 8, 8), 9_000_000, "the labels")],
)
def test_what_must_be_held_at_once_is_bounded(
    shape: tuple[int, ...], columns: int, said: str
) -> None:
    images, labels = 4 * int(np.prod(shape)), 4 * shape[0] * columns
    header = {
        "images": {"dtype": "F32", "shape": list(shape), "data_offsets": [0, images]},
        "labels": {
            "dtype": "F32",
            "shape": [shape[0], columns],
            "data_offsets": [images, images + labels],
        },
        "learning_rate": {
            "dtype": "F32",
            "shape": [1],
            "data_offsets": [images + labels, images + labels + 4],
        },
    }
    head = json.dumps(header).encode()
    start = len(head).to_bytes(8, "little") + head

    def read(at: int, length: int) -> bytes:
        assert at + length <= len(start), "nothing behind the header is read"
        return start[at : at + length]

    with pytest.raises(PackageError, match=f"{said} ha(s|ve) more than"):
        open_tensors(read, len(start) + images + labels + 4)

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppdd_core.errors import PackageError
from ppdd_core.package import canonical

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner),
    max_leaves=8,
)


def test_known_vector_of_rfc_8785() -> None:
    value = {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "literals": [None, True]}
    wanted = b'{"literals":[null,true],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}'
    assert canonical.dump(value) == wanted


@given(VALUES)
def test_what_is_written_reads_back_and_writes_the_same(value: Any) -> None:
    data = canonical.dump(value)
    assert canonical.dump(canonical.parse(data, name="x")) == data


@pytest.mark.parametrize("value", [math.nan, math.inf, 2**60, "\ud800", {1: 2}, {1, 2}], ids=ascii)
def test_refuses_to_write(value: Any) -> None:
    with pytest.raises(PackageError):
        canonical.dump(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"[-Infinity]",
        b"1e999",
        b"12345678901234567890",
        b"9" * 100_000,
        b'{"a":1,"a":2}',
        b'{"x":{"a":1,"a":1}}',
        b'"\\ud800"',
        b'{"\\udfff":1}',
        b"\xff\xfe1\x00",
        b"\xef\xbb\xbf1",
        b"\xc0\x80",
        b"[" * 100_000,
        b"[" * 30 + b"]" * 30,
        b'{"a":' * 30 + b"1" + b"}" * 30,
        b"1 2",
    ],
    ids=lambda data: ascii(data[:24]),
)
def test_refuses_to_read(data: bytes) -> None:
    with pytest.raises(PackageError, match="thing"):
        canonical.parse(data, name="thing")


def test_refuses_more_bytes_than_allowed() -> None:
    assert canonical.parse(b"[1]", name="x", limit=3) == [1]
    with pytest.raises(PackageError, match="at most 2"):
        canonical.parse(b"[1]", name="x", limit=2)

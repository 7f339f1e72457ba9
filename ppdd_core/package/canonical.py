"""JSON for bytes that are hashed and signed: one way to write it (RFC 8785), one strict way to read it.

Torch-free. What the values mean is decided by `manifest` and `verify`.
"""

from __future__ import annotations

import json
import math
from typing import Any

import rfc8785

from ppdd_core.errors import PackageError

MAX_JSON_BYTES = 8 * 2**20  # what parsing makes of it may take 25 times as much memory
MAX_DEPTH = 24
_MAX_DIGITS = 17  # of a whole number; RFC 8785 numbers are doubles, exact below 2^53


def dump(value: Any) -> bytes:
    """Return `value` as canonical JSON; NaN, infinities and whole numbers from 2^53 on raise PackageError."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError) as err:
        raise PackageError(f"cannot be written as JSON: {err}") from err


def parse(data: bytes, *, name: str, limit: int = MAX_JSON_BYTES) -> Any:
    """Return the JSON value in `data`, which may come from an enemy.

    Refused with PackageError, naming `name`: more than `limit` bytes, anything but UTF-8, repeated keys,
    NaN and infinities, whole numbers that a double cannot hold, nesting deeper than MAX_DEPTH.
    """
    if len(data) > limit:
        raise PackageError(f"{name} has {len(data)} bytes; at most {limit} are allowed")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_exact,
        )
        _check(value)
    except RecursionError:
        raise PackageError(f"{name} is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as err:
        raise PackageError(f"{name} is not valid JSON: {err}") from None
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _exact(text: str) -> int:
    if len(text) > _MAX_DIGITS or abs(int(text)) >= 2**53:
        raise ValueError("a whole number is too large")
    return int(text)


def _check(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                item.encode("utf-8")  # a lone surrogate is a ValueError
        if not below:
            return
        level = below
    raise RecursionError

"""Text and numbers from outside, made fit for every database: PostgreSQL takes no NUL, JSON no NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def clean(text: str, longest: int | None = None) -> str:
    """Return `text` with what no database stores (NUL, halves of a character) replaced, cut to `longest`."""
    whole = text[:longest].replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return whole.encode("utf-8", "replace").decode("utf-8")


def plain(value: Any) -> Any:
    """Return a JSON value that every database stores: texts cleaned, numbers that are not finite become null."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value

"""Names of files as a dataset gives them: which are refused, and how they are shown to people.

Pure functions over text. Opening files is in `folder_source.py` and `archive_source.py`.
"""

from __future__ import annotations

import re

from ppdd_core.errors import UnsafeSourceError

MAX_NAME = 1024  # characters
MAX_DEPTH = 32  # folders

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE = re.compile(r"^[A-Za-z]:")


def shown(name: str, limit: int = 72) -> str:
    """Return `name` for a message: quoted, nothing unprintable, the middle left out when long."""
    text = repr(name)
    if len(text) <= limit:
        return text
    tail = limit // 2
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


def safe_name(name: str, *, where: str) -> str:
    """Return `name` as a clean relative POSIX path that stays under its root.

    `where` says in the error which place gave the name. Refused with UnsafeSourceError: empty,
    absolute, drive letters, `..` or empty parts, backslashes, control characters and NUL, text that
    cannot be encoded, and absurd lengths. A leading `./` is dropped.
    """
    fault = _fault(name)
    if fault:
        raise UnsafeSourceError(
            f"{where}: the path {shown(name)} {fault}; paths must be relative, with '/' between "
            "folders, and stay inside the dataset"
        )
    if "./" in name or name.endswith("/."):
        return "/".join(part for part in name.split("/") if part != ".")
    return name


def _fault(name: str) -> str | None:
    if not name.strip():
        return "is empty"
    if len(name) > MAX_NAME or name.count("/") > MAX_DEPTH:
        return "is longer or deeper than any real path"
    if _CONTROL.search(name):
        return "holds control characters"
    if "\\" in name:
        return "holds a backslash"
    if name.startswith("/") or _DRIVE.match(name):
        return "is absolute"
    parts = name.split("/")
    if ".." in parts:
        return "leaves its folder ('..')"
    if "" in parts or set(parts) == {"."}:
        return "has an empty part"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "is not valid text"
    return None

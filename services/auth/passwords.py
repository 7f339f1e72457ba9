"""Passwords of people: which are refused, and how they are kept (argon2id)."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Iterable
from functools import cache

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError

from services.kit.errors import UnprocessableError

SHORTEST, LONGEST = 12, 512  # characters
_FEWEST_KINDS = 5  # different characters
_AT_ONCE = 2  # hashes computed side by side: each takes 64 MiB

# What people choose when they must choose something; digits and signs around and between do not help.
_COMMON = frozenset(
    re.findall(
        "[a-z]+",
        """
        abcdefghijkl abcdefghijklmnop access admin administrator change changeit changeme changemenow changethis chest
        chestxray clinic correcthorsebatterystaple default doctor example football guest hospital iloveyou letmein
        letmeinnow loveyou master mypassword node nurse pass passwd passphrase password passwordpassword patient
        placeholder ppdd qwerty qwertyuiop qwertyuiopasdf qwertzuiop radiology research researcher root secret
        secretpassword sunshine superuser system temp temporary test testing testtest thisismypassword thisisapassword
        trustno user welcome welcomewelcome xray yourpassword yoursecret
        """,
    )
)
_ROWS = (
    "01234567890123456789",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertzuiopasdfghjklyxcvbnm",
)
_LOOKALIKES = str.maketrans("013457@$!", "oleastasi")
_hashing = threading.BoundedSemaphore(_AT_ONCE)


class WeakPasswordError(UnprocessableError):
    """The password is too easy to guess."""

    slug, title = "weak-password", "Choose another password"


def require_strong(password: str, names: Iterable[str]) -> None:
    """Raise WeakPasswordError for a password that is short, common, a row of keys, or made of one of `names`."""
    fault = _fault(_normal(password), names)
    if fault is not None:
        raise WeakPasswordError(f"password: {fault}")


def hash_password(password: str) -> str:
    """Return what is stored of a password."""
    with _hashing:
        return _hasher().hash(_normal(password))


def check_password(password: str, stored: str | None) -> bool:
    """Return whether `stored` is of this password. None, for nobody, takes as long and is False."""
    expected = stored or _nobody()
    with _hashing:
        try:
            fits = _hasher().verify(_normal(password), expected)
        except PwdlibError:  # what is stored is no hash
            return False
    return fits and stored is not None


def _fault(password: str, names: Iterable[str]) -> str | None:
    lower = password.casefold()
    if len(password) < SHORTEST:
        return f"{SHORTEST} characters or more"
    if len(password) > LONGEST:
        return f"{LONGEST} characters at most"
    if len(set(lower)) < _FEWEST_KINDS:
        return "more different characters"
    if lower.isdigit():
        return "not digits alone"
    if any(_is_row(lower, row) for row in _ROWS):
        return "not a row of keys, letters or digits"
    if any(_is_common(letters) for letters in _readings(lower)):
        return (
            "not a common one with digits or signs added; several unrelated words are a good choice"
        )
    for name in _parts(names):
        if name in lower:
            return "not your own name"
    return None


def _readings(lower: str) -> set[str]:
    """Return the letters of a password, with and without digits and signs read as the letters they look like."""
    core = lower.rstrip("0123456789!?.")
    texts = (lower, lower.translate(_LOOKALIKES), core.translate(_LOOKALIKES))
    return {re.sub(r"[^a-z]", "", text) for text in texts}


def _is_common(letters: str) -> bool:
    """Whether the letters are a common word, or a few of them on end."""
    reached = {0}
    for end in range(1, len(letters) + 1):
        if any(start in reached and letters[start:end] in _COMMON for start in range(end)):
            reached.add(end)
    return bool(letters) and len(letters) in reached


def _is_row(lower: str, row: str) -> bool:
    """Whether most of the password is one stretch of a row, forwards or backwards."""
    longest = max(len(lower) - 4, SHORTEST // 2)
    stretches = (lower[start : start + longest] for start in range(len(lower) - longest + 1))
    return any(stretch in row or stretch[::-1] in row for stretch in stretches)


def _parts(names: Iterable[str]) -> set[str]:
    """Return names and their parts, as far as they are long enough to matter."""
    found = set()
    for name in names:
        lower = _normal(name).casefold()
        found |= {part for part in (lower, *re.split(r"[\s._@-]+", lower)) if len(part) >= 4}
    return found


def _normal(text: str) -> str:
    """Return one spelling of what looks alike: keyboards differ in how they write accents."""
    return unicodedata.normalize("NFKC", text)


@cache
def _hasher() -> PasswordHash:
    return PasswordHash.recommended()


@cache
def _nobody() -> str:
    """Return the hash of a password that nobody has."""
    return _hasher().hash("nobody has this password")

"""An uploaded image at rest: encrypted under a key of its own, before the first byte reaches a disk.

It is the image of a patient. Its key is random, used once, and kept as the job's sealed credential, which the
transaction that ends the job erases: from then on nobody can read the bytes, wherever a copy may still lie. The digest
of what is stored says nothing about the image.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015) over AES-256-GCM: the nonce counts the
pieces and marks the last one, so that none can be cut off, repeated, swapped or added.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ppdd_core.errors import PpddError

PIECE = 1 << 20  # bytes of the image that are sealed together
TAG = 16  # bytes that each piece grows by
_KEY = 32


class SealError(PpddError):
    """Sealed bytes were altered, or do not belong to this key."""


def new_key() -> str:
    """Return a random key for one image, as text."""
    return secrets.token_hex(_KEY)


class Sealer:
    """Seals an image's bytes as they come; `finish` must follow the last of them."""

    def __init__(self, key: str) -> None:
        self._cipher = AESGCM(bytes.fromhex(key))
        self._held = bytearray()  # never empty once a byte came: the piece that may be the last
        self._number = 0

    def add(self, data: bytes) -> bytes:
        """Take the next bytes of the image and return what of it is sealed by now, which may be nothing."""
        self._held += data
        sealed = []
        while len(self._held) > PIECE:
            sealed.append(self._seal(bytes(self._held[:PIECE]), last=False))
            del self._held[:PIECE]
        return b"".join(sealed)

    def finish(self) -> bytes:
        """Return the last sealed bytes."""
        return self._seal(bytes(self._held), last=True)

    def _seal(self, piece: bytes, *, last: bool) -> bytes:
        sealed = self._cipher.encrypt(_nonce(self._number, last=last), piece, None)
        self._number += 1
        return sealed


def unseal(key: str, sealed: Iterable[bytes]) -> bytes:
    """Return the image; SealError where anything is not as it was sealed under `key`."""
    cipher, parts = AESGCM(bytes.fromhex(key)), []
    try:
        for number, (piece, last) in enumerate(_pieces(sealed)):
            parts.append(cipher.decrypt(_nonce(number, last=last), piece, None))
    except (InvalidTag, ValueError):
        raise SealError("the stored image was altered; send it again") from None
    return b"".join(parts)


def _pieces(sealed: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield whole sealed pieces, and whether each is the last."""
    held = bytearray()
    for data in sealed:
        held += data
        while len(held) > PIECE + TAG:
            yield bytes(held[: PIECE + TAG]), False
            del held[: PIECE + TAG]
    yield bytes(held), True


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])

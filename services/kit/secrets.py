"""Random tokens, their digests, and sealed credentials. Passwords of people are in `services.auth`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ppdd_core.errors import BadConfigError
from services.settings import SHORTEST_KEY, Settings, secret_fault

TOKEN_PREFIX = "ppdd_"  # noqa: S105 - what secret scanners look for, no secret
_NONCE = 12  # bytes, as AES-GCM wants


def new_token(prefix: str = TOKEN_PREFIX) -> str:
    """Return a random token of 256 bits."""
    return prefix + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """Return the sha256 of a random token: enough for 256 bits of chance, and quick to look up."""
    return hashlib.sha256(token.encode()).hexdigest()


def same(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


@dataclass(frozen=True, slots=True)
class Vault:
    """Seals credentials that must be kept: AES-256-GCM, bound to what they are for."""

    key: bytes

    def seal(self, text: str, purpose: str) -> str:
        """Return `text` encrypted; it opens only with the same `purpose`, for example a job's id."""
        nonce = os.urandom(_NONCE)
        sealed = AESGCM(self.key).encrypt(nonce, text.encode(), purpose.encode())
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: str, purpose: str) -> str:
        """Return what was sealed; BadConfigError where the key is another one or the text was altered."""
        try:
            data = base64.b64decode(sealed, validate=True)
            return AESGCM(self.key).decrypt(data[:_NONCE], data[_NONCE:], purpose.encode()).decode()
        except (InvalidTag, ValueError):
            raise BadConfigError(
                "a stored credential cannot be opened: the node's secret key (PPDD_SECRET_KEY) is not the one it was "
                "sealed with"
            ) from None


def load_vault(settings: Settings) -> Vault:
    """Return the vault under the node's secret key; without one, a key is made in `data_dir/keys/secret-key`."""
    given = (
        settings.secret_key.get_secret_value()
        if settings.secret_key
        else _own_key(settings.data_dir / "keys" / "secret-key")
    )
    return Vault(HKDF(SHA256(), 32, None, b"ppdd vault v1").derive(given.encode()))


def _own_key(path: Path) -> str:
    if not path.exists():
        _make_key(path)
    text = path.read_text(encoding="utf-8").strip()
    if fault := secret_fault(text, shortest=SHORTEST_KEY):
        raise BadConfigError(f"the secret key in {path} {fault}")
    return text


def _make_key(path: Path) -> None:
    """Write a new key, whole, unless another process is quicker: then that one's is the key."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink()

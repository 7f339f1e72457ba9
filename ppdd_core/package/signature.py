"""Ed25519 over the manifest's bytes, in a DSSE envelope that carries the public key.

Torch-free. A key is known by its fingerprint: sha256 of the 32 raw public key bytes, 64 hex digits; for
people it is printed in groups of four, and either form is accepted. Whether a key is *trusted* is the
caller's decision: pin the fingerprint learned from the site itself.

The envelope is DSSE v1 (payload type `application/vnd.ppdd.manifest+json`, payload = `manifest.json`, one
signature over the pre-authentication encoding); `public_key` beside `sig` is our addition, so that a
signature can be checked with nothing but the fingerprint.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ppdd_core.errors import PackageError, SignatureError
from ppdd_core.package import canonical

PAYLOAD_TYPE = "application/vnd.ppdd.manifest+json"
MAX_ENVELOPE_BYTES = 8 * 2**20
_MAX_KEY_FILE = 4096
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Signed:
    """What an envelope holds: its payload, and the fingerprint of the key whose signature holds."""

    payload: bytes
    key: str


def sign(payload: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the DSSE envelope over `payload` as canonical JSON; the same input gives the same bytes."""
    public = key.public_key().public_bytes_raw()
    return canonical.dump(
        {
            "payloadType": PAYLOAD_TYPE,
            "payload": _to_text(payload),
            "signatures": [
                {
                    "keyid": fingerprint_of_bytes(public),
                    "public_key": _to_text(public),
                    "sig": _to_text(key.sign(encode_for_signing(payload))),
                }
            ],
        }
    )


def open_envelope(envelope: bytes) -> Signed:
    """Return payload and signer of a DSSE envelope whose signature holds.

    SignatureError says what is wrong: shape, payload type, a key id that is not the key's, or a signature
    that does not fit. It does not say that the signer is the right one.
    """
    value = _parse_envelope(envelope)
    if (
        set(value) != {"payload", "payloadType", "signatures"}
        or value["payloadType"] != PAYLOAD_TYPE
    ):
        raise SignatureError(f"the signature file is not a DSSE envelope for {PAYLOAD_TYPE}")
    signatures = value["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        raise SignatureError("the signature file must hold exactly one signature")
    entry = signatures[0]
    if not isinstance(entry, dict) or set(entry) != {"keyid", "public_key", "sig"}:
        raise SignatureError(
            "the signature must have the fields keyid, public_key and sig, no others"
        )
    payload, public = _from_text(value["payload"]), _from_text(entry["public_key"])
    if entry["keyid"] != fingerprint_of_bytes(public):
        raise SignatureError("the signature's key id is not the fingerprint of its public key")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(
            _from_text(entry["sig"]), encode_for_signing(payload)
        )
    except (InvalidSignature, ValueError):
        raise SignatureError("the signature does not fit the manifest and the public key") from None
    return Signed(payload, entry["keyid"])


def encode_for_signing(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding of type and payload: the bytes that are signed."""
    return b"DSSEv1 %d %s %d %s" % (
        len(PAYLOAD_TYPE),
        PAYLOAD_TYPE.encode(),
        len(payload),
        payload,
    )


def fingerprint(key: Ed25519PrivateKey | Ed25519PublicKey) -> str:
    """Return the fingerprint of a key pair: 64 hex digits."""
    public = key.public_key() if isinstance(key, Ed25519PrivateKey) else key
    return fingerprint_of_bytes(public.public_bytes_raw())


def fingerprint_of_bytes(public: bytes) -> str:
    """Return the fingerprint of a raw 32-byte public key: 64 hex digits."""
    return hashlib.sha256(public).hexdigest()


def printable(key: str) -> str:
    """Return a fingerprint as people compare it: sixteen groups of four hex digits."""
    return " ".join(key[start : start + 4] for start in range(0, len(key), 4))


def parse_fingerprint(text: str) -> str:
    """Return the fingerprint typed by a person: spaces, colons, hyphens and case do not matter.

    Anything but 64 hex digits raises SignatureError.
    """
    key = re.sub(r"[\s:-]", "", text).lower()
    if not _FINGERPRINT.fullmatch(key):
        raise SignatureError(f"a key fingerprint has 64 hex digits, got {text[:80]!r}")
    return key


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Return the signing key in `path`, making it first where there is none.

    The file is PKCS #8 PEM, mode 0600, written whole or not at all; of two processes that create it at once
    both get the same key. SignatureError if others may read it, or if it is no Ed25519 key.
    """
    if not path.exists():
        _create_key(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        raise SignatureError(f"the signing key {path} cannot be opened: {err.strerror}") from err
    mode = os.fstat(descriptor).st_mode
    mounted = bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise SignatureError(f"the signing key {path} is not a regular file")
    with os.fdopen(descriptor, "rb") as file:
        pem = file.read(_MAX_KEY_FILE + 1)
    # A container's secret is a file on a read-only mount; its mode is the host's, and nobody else is in there.
    if mode & 0o077 and not mounted:
        raise SignatureError(
            f"the signing key {path} can be read by others (mode {mode & 0o777:04o}); run: chmod 600 {path}"
        )
    try:
        key = load_pem_private_key(pem, password=None) if len(pem) <= _MAX_KEY_FILE else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(
            f"the signing key {path} is not an unencrypted Ed25519 key in PKCS #8 PEM"
        )
    return key


def _create_key(path: Path) -> None:
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(partial, path)
        except FileExistsError:
            return  # another process was faster: its key is the key
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        partial.unlink()


def _parse_envelope(envelope: bytes) -> dict[str, Any]:
    try:
        value = canonical.parse(envelope, name="signature.dsse.json", limit=MAX_ENVELOPE_BYTES)
    except PackageError as err:
        raise SignatureError(str(err)) from err
    if not isinstance(value, dict):
        raise SignatureError("the signature file is not a JSON object")
    return value


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_text(text: Any) -> bytes:
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except ValueError:
        data = None
    if data is None or _to_text(data) != text:
        raise SignatureError("the signature file holds text that is not base64")
    return data

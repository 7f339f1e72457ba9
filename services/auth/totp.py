"""One-time passwords (RFC 6238) and the recovery codes that stand in for them."""

from __future__ import annotations

import secrets
from datetime import datetime

import pyotp

from services.kit.secrets import digest, same

STEP_SECONDS = 30
TOLERANCE = 1  # steps that a clock may be off, either way
RECOVERY_CODES = 10
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # nothing that is read as something else
_LENGTH = 16  # characters of a recovery code: 79 bits, so that a plain digest hides it


def new_secret() -> str:
    """Return a secret to share with an authenticator app."""
    return pyotp.random_base32()


def address_of(secret: str, username: str, issuer: str) -> str:
    """Return the `otpauth://` address that an app reads, usually as a QR code."""
    return pyotp.TOTP(secret).provisioning_uri(name=username, issuer_name=issuer)


def matching_step(secret: str, code: str, at: datetime) -> int | None:
    """Return the step of time that `code` belongs to, None if it is wrong now. The caller sees that it works once."""
    now = int(at.timestamp()) // STEP_SECONDS
    generator = pyotp.TOTP(secret)
    found = None
    for step in range(now - TOLERANCE, now + TOLERANCE + 1):  # every one, whichever fits
        if same(generator.generate_otp(step), code):
            found = step
    return found


def new_recovery_codes() -> list[str]:
    """Return codes to write down, in groups of four."""
    return [
        "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(_LENGTH // 4))
        for _ in range(RECOVERY_CODES)
    ]


def recovery_digest(code: str) -> str:
    """Return what is stored of a recovery code; hyphens, spaces and case do not matter."""
    return digest("".join(code.casefold().split()).replace("-", ""))

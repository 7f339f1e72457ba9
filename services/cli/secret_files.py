"""What docker compose needs before its first start: `.env`, and one file per secret, all made here and none printed.

The folder `secrets` is its owner's alone. The files in it can be read by all who are let in, because containers see
them one by one, each under a user of its own.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ppdd_core.errors import BadConfigError
from ppdd_core.package.signature import load_or_create_key
from services.settings import load_settings

DAYS = 825  # of a certificate signed by itself: the longest that browsers accept
HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
REDIS = """\
bind * -::*
port 6379
dir /data
appendonly yes
maxmemory 384mb
maxmemory-policy noeviction
requirepass {password}
"""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What is to be decided before a node can start."""

    site_id: str
    site_name: str
    host: str
    port: int
    images: Path
    profile: str

    @property
    def url(self) -> str:
        """Return the node's public address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}" + ("" if self.port == 443 else f":{self.port}")


def write_deployment(
    folder: Path, wanted: Deployment, certificate: Path | None, key: Path | None
) -> None:
    """Write `.env` and `secrets/` into `folder`, both or neither; BadConfigError where either is there already."""
    _check(wanted, certificate, key)
    environment, final = folder / ".env", folder / "secrets"
    for path in (environment, final):
        if os.path.lexists(path):
            raise BadConfigError(f"{path} is there already; its secrets are in use, so it is kept")
    folder.mkdir(parents=True, exist_ok=True)
    with _whole_or_not(final) as aside:
        password = secrets.token_urlsafe(32)
        _write(aside / "secret_key", secrets.token_urlsafe(48))
        _write(aside / "database_password", secrets.token_urlsafe(32))
        _write(aside / "broker_password", password)
        _write(aside / "broker_config", REDIS.format(password=password))
        _write(aside / "store_access_key", secrets.token_hex(10))
        _write(aside / "store_secret_key", secrets.token_urlsafe(30))
        load_or_create_key(aside / "site_key")
        pair = _given(certificate, key) if certificate and key else self_signed(wanted.host)
        _write(aside / "tls_certificate", pair[0])
        _write(aside / "tls_key", pair[1])
        for path in aside.iterdir():
            path.chmod(0o444)
        _write(environment, _environment(wanted), 0o600)


def self_signed(host: str) -> tuple[str, str]:
    """Return a certificate for `host`, signed by itself, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    start = datetime.now(UTC) - timedelta(hours=1)  # another clock may be behind
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode(), private.decode()


def _given(certificate: Path, key: Path) -> tuple[str, str]:
    """Return the files' text; BadConfigError where they are none, or do not belong together."""
    try:
        chain, private = certificate.read_text(encoding="ascii"), key.read_text(encoding="ascii")
        leaf = x509.load_pem_x509_certificate(chain.encode())
        public = load_pem_private_key(private.encode(), password=None).public_key()
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise BadConfigError(
            f"--cert and --key-file must be PEM files without a password: {err}"
        ) from None
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*spki) != public.public_bytes(*spki):
        raise BadConfigError(f"{key} is not the key of {certificate}")
    return chain, private


def _check(wanted: Deployment, certificate: Path | None, key: Path | None) -> None:
    if (certificate is None) != (key is None):
        raise BadConfigError("--cert and --key-file belong together")
    try:
        ipaddress.ip_address(wanted.host)
    except ValueError:
        if not HOST.fullmatch(wanted.host) or len(wanted.host) > 253:
            raise BadConfigError(
                f"--public-host must be a host's name or address, without scheme and port; got {wanted.host!r}"
            ) from None
    if any(not one.isprintable() or one in '"\\$' for one in wanted.site_name):
        raise BadConfigError('--site-name may have no ", no $, no backslash and no line break')
    if any(one in '"\\$\n' for one in str(wanted.images)):
        raise BadConfigError('--images may have no ", no $, no backslash and no line break')
    load_settings({}, site_id=wanted.site_id, site_name=wanted.site_name, public_url=wanted.url)


def _environment(wanted: Deployment) -> str:
    return (
        "# Made by `ppdd node init`. What else can be set: docs/settings.md; secrets lie in secrets/.\n"
        f"PPDD_SITE_ID={wanted.site_id}\n"
        f'PPDD_SITE_NAME="{wanted.site_name}"\n'
        f"PPDD_PUBLIC_URL={wanted.url}\n"
        f"PPDD_HTTPS_PORT={wanted.port}\n"
        f'PPDD_IMAGES_DIR="{wanted.images.absolute()}"\n'
        f"COMPOSE_PROFILES={wanted.profile}\n"
    )


@contextmanager
def _whole_or_not(final: Path) -> Iterator[Path]:
    """Yield a folder beside `final` that becomes it, or is removed if the block fails."""
    aside = final.with_name(f".{final.name}.{secrets.token_hex(4)}")
    aside.mkdir(mode=0o700)
    try:
        yield aside
        aside.rename(final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write(path: Path, text: str, mode: int = 0o600) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)

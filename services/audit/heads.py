"""Signed heads: what the log's end was at a moment, kept outside the chain.

A chain of hashes shows that nothing in it was changed; it cannot show that its end is missing, or that all of it was
written anew. A head names an event and its hash, signed with the site's key. Heads lie in a table and, the newest, in
`data_dir/audit-head.json`: whoever cuts the log must forge a signature, or remove both. Who holds database, folder and
key can do that; against them a copy of that file, or an export, is kept elsewhere.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import select
from sqlalchemy.orm import Session

from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.package.signature import fingerprint_of_bytes
from services.audit.models import AuditHead
from services.kit.errors import UnprocessableError

FILE = "audit-head.json"
FORMAT = "ppdd-audit-head/1"
_CONTEXT = b"ppdd audit head v1\n"  # so that no signature of anything else can pass for a head's
_MAX_BYTES = 4096


class BadHeadError(UnprocessableError):
    """What should be a signed head is none."""

    slug, title = "bad-audit-head", "This is no signed head of an audit log"


@dataclass(frozen=True, slots=True)
class Head:
    """The last event at a moment: its number and hash, and the signature over the three."""

    seq: int
    hash: str
    at: str
    public_key: bytes
    signature: bytes

    @property
    def key(self) -> str:
        """The signer's fingerprint."""
        return fingerprint_of_bytes(self.public_key)

    @property
    def genuine(self) -> bool:
        """Whether the signature fits the public key; whose key that is, the caller must know."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(
                self.signature, _signed(self.seq, self.hash, self.at)
            )
        except (InvalidSignature, ValueError):
            return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """Return the head as it is written to files and exports."""
        return {
            "format": FORMAT,
            "seq": self.seq,
            "hash": self.hash,
            "at": self.at,
            "key": self.key,
            "public_key": _to_text(self.public_key),
            "signature": _to_text(self.signature),
        }


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads that count, and remarks on those that do not; `forged` is among them if a signature does not fit."""

    trusted: tuple[Head, ...] = ()
    remarks: tuple[str, ...] = ()
    forged: bool = False

    @property
    def newest(self) -> Head | None:
        """The head of the latest event."""
        return max(self.trusted, key=lambda head: head.seq, default=None)


def sign_head(seq: int, hash_: str, at: datetime, key: Ed25519PrivateKey) -> Head:
    """Return the signed head for an event."""
    moment = text_of(at)
    signature = key.sign(_signed(seq, hash_, moment))
    return Head(seq, hash_, moment, key.public_key().public_bytes_raw(), signature)


def parse_head(value: Any, where: str) -> Head:
    """Return the head in a JSON value; BadHeadError, naming `where`, if it has another form."""
    try:
        if value["format"] != FORMAT or type(value["seq"]) is not int:
            raise ValueError
        head = Head(
            value["seq"],
            str(value["hash"]),
            str(value["at"]),
            base64.b64decode(value["public_key"], validate=True),
            base64.b64decode(value["signature"], validate=True),
        )
    except (KeyError, TypeError, ValueError):
        raise BadHeadError(f"{where} is not a signed head of an audit log ({FORMAT})") from None
    if value.get("key") != head.key:
        raise BadHeadError(f"{where} names another key than the one it carries")
    return head


def read_head(path: Path) -> Head | None:
    """Return the head in a file, None where there is no file; BadHeadError for anything else."""
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_MAX_BYTES + 1))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise BadHeadError(f"{path} cannot be read as a signed head of an audit log") from None
    return parse_head(value, str(path))


def collect(session: Session, folder: Path, key: str, *, latest: int | None = None) -> Heads:
    """Return the heads in the table (all, or the `latest`) and in `folder`, as far as the key `key` signed them."""
    remarks = []
    found: list[tuple[str, Head]] = []
    try:
        head = read_head(folder / FILE)
        if head is None:
            remarks.append(f"{FILE} is not there")
        else:
            found.append((FILE, head))
    except BadHeadError as err:
        remarks.append(err.detail)
    rows = session.scalars(select(AuditHead).order_by(AuditHead.seq.desc()).limit(latest))
    found += [(f"the head of event {row.seq}", _of_row(row)) for row in rows]
    sorted_out = sort_out(found, key)
    return Heads(sorted_out.trusted, (*remarks, *sorted_out.remarks), sorted_out.forged)


def sort_out(found: Iterable[tuple[str, Head]], key: str) -> Heads:
    """Return which of the named heads count: signatures that fit, by the key of fingerprint `key`."""
    trusted, remarks, forged = [], [], False
    for name, head in found:
        if not head.genuine:
            remarks.append(f"{name} has a signature that does not fit")
            forged = True
        elif head.key != key:
            remarks.append(f"{name} is signed with another key, {head.key[:16]}…; it is not used")
        else:
            trusted.append(head)
    return Heads(tuple(trusted), tuple(remarks), forged)


def add_head(session: Session, head: Head) -> None:
    """Write a head to the table; one for the same event stays as it is."""
    if session.get(AuditHead, head.seq) is None:
        session.add(
            AuditHead(
                seq=head.seq,
                hash=head.hash,
                at=datetime.fromisoformat(head.at),
                public_key=_to_text(head.public_key),
                signature=_to_text(head.signature),
            )
        )
        session.flush()


def save_head(folder: Path, head: Head) -> None:
    """Write a head to its file in `folder`, whole or not at all."""
    write_atomically(folder / FILE, json_bytes(head.to_dict()))


def text_of(at: datetime) -> str:
    """Return a moment in UTC as the log writes it."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _of_row(row: AuditHead) -> Head:
    try:
        public = base64.b64decode(row.public_key, validate=True)
        signature = base64.b64decode(row.signature, validate=True)
    except ValueError:
        public, signature = b"", b""  # no signature fits these
    return Head(row.seq, row.hash, text_of(row.at), public, signature)


def _signed(seq: int, hash_: str, at: str) -> bytes:
    return _CONTEXT + rfc8785.dumps({"seq": seq, "hash": hash_, "at": at})


def _to_text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

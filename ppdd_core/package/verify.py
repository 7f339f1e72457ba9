"""Is this package what it says, whole, sound, and by whom? Every fault is found and named.

Torch-free, so that a node and a reviewer need no GPU software. Pure over the package's bytes; only
`verify_package` and `open_verified` touch the disk. What may be done with a sound package (grants, privacy
policy) is decided elsewhere.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ppdd_core.errors import BadManifestError, PackageError, SignatureError, UnsafeArchiveError
from ppdd_core.package import canonical, card, croissant, manifest, previews, reports, tensors
from ppdd_core.package.archive import WHAT_IT_IS, Contents, Unsafe, read_files, title
from ppdd_core.package.manifest import Manifest
from ppdd_core.package.signature import open_envelope, parse_fingerprint

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: a code for programs, the file or place, and a sentence for people."""

    code: str
    where: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.where}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. The package is sound where `ok`; `trusted` says that the pinned key signed it."""

    faults: tuple[Fault, ...]
    notes: tuple[str, ...]  # true and worth knowing, but no fault
    manifest: Manifest | None  # where it could be read
    key: str | None  # fingerprint of the key whose signature holds
    trusted: bool
    digest: str | None  # sha256 of the manifest

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    @property
    def signer(self) -> str:
        """Who signed, in words."""
        if self.key is None:
            return "not signed by anyone"
        return f"signed by {'the pinned' if self.trusted else 'unknown'} key {self.key}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        return {
            "ok": self.ok,
            "package": None
            if self.manifest is None
            else f"{self.manifest.name}@{self.manifest.version}",
            "digest": self.digest,
            "key": self.key,
            "trusted": self.trusted,
            "signer": self.signer,
            "notes": list(self.notes),
            "faults": [
                {"code": f.code, "where": f.where, "sentence": f.sentence} for f in self.faults
            ],
        }


@dataclass(frozen=True, slots=True)
class VerifiedPackage:
    """A package in which nothing was wrong: its manifest and the very bytes that were checked."""

    manifest: Manifest
    files: Mapping[str, bytes]
    verification: Verification


def verify_package(
    path: Path | str, *, trusted_key: str | None = None, today: date | None = None
) -> Verification:
    """Return everything that is wrong with the package in `path`, a folder or a ZIP.

    `trusted_key` pins the signer's fingerprint: any other is a fault. Without it the result says which key
    signed, and nothing about whose that is. `today` makes an expired permission a fault. PackageError if
    there is no package at `path`, SignatureError if `trusted_key` is no fingerprint.
    """
    pinned = None if trusted_key is None else parse_fingerprint(trusted_key)
    try:
        contents = read_package(Path(path))
    except UnsafeArchiveError as err:
        name = title(Path(path))
        fault = Fault("unsafe_archive", name, str(err).removeprefix(f"{name}: "))
        return Verification((fault,), (), None, None, False, None)
    return verify_files(contents.files, refused=contents.refused, trusted_key=pinned, today=today)


def open_verified(
    path: Path | str, *, trusted_key: str | None = None, today: date | None = None
) -> VerifiedPackage:
    """Return the package in `path` if nothing is wrong with it; else PackageError names the first faults."""
    pinned = None if trusted_key is None else parse_fingerprint(trusted_key)
    contents = read_package(Path(path))
    found = verify_files(contents.files, refused=contents.refused, trusted_key=pinned, today=today)
    if found.manifest is None or not found.ok:
        raise refusal(found, str(path))
    return VerifiedPackage(found.manifest, contents.files, found)


def read_package(path: Path) -> Contents:
    """Return the files in `path` as `read_files` does; of a folder without a manifest nothing is read."""
    if path.is_dir() and not os.path.lexists(path / manifest.MANIFEST):
        return Contents({}, ())
    return read_files(path)


def refusal(found: Verification, name: str) -> PackageError:
    """Return the error for a package with faults; its message names the first three."""
    shown = "; ".join(str(fault) for fault in found.faults[:3])
    more = (
        f"; and {len(found.faults) - 3} more (see: ppdd package verify)"
        if len(found.faults) > 3
        else ""
    )
    text = f"{name} cannot be used: {shown}{more}"
    by_key = any(
        fault.code in ("signature", "untrusted_key", "other_key") for fault in found.faults[:3]
    )
    return SignatureError(text) if by_key else PackageError(text)


def verify_files(
    files: Mapping[str, bytes],
    *,
    refused: tuple[Unsafe, ...] = (),
    trusted_key: str | None = None,
    today: date | None = None,
) -> Verification:
    """Return everything that is wrong with a package's bytes by path; see `verify_package`.

    Without a manifest they are no package, and that is the only fault.
    """
    findings = _Findings()
    if manifest.MANIFEST not in {*files, *(entry.where for entry in refused)}:
        findings.add(
            "missing_file",
            manifest.MANIFEST,
            f"it is missing, so this is not a package; {WHAT_IT_IS}",
        )
        return Verification(tuple(findings.faults), (), None, None, False, None)
    for entry in refused:
        findings.add("unsafe_entry", ascii(entry.where)[1:-1], entry.reason)
    data = files.get(manifest.MANIFEST)
    stated = None if data is None else _read_manifest(data, findings)
    if data is None:
        findings.add("missing_file", manifest.MANIFEST, "it is missing")
    key = _check_signature(files, stated, trusted_key, findings)
    _check_listing(files, _listed(data, stated), findings)
    if stated is not None:
        if (
            today is not None
            and stated.usage.expires is not None
            and today > date.fromisoformat(stated.usage.expires)
        ):
            findings.add(
                "expired",
                manifest.MANIFEST,
                f"the permission to use it ended on {stated.usage.expires}",
            )
        _check_contents(files, stated, findings)
    elif manifest.TENSORS in files:
        where = manifest.TENSORS
        findings.attempt("tensors", where, tensors.read_tensors, files[where])
    return Verification(
        faults=tuple(findings.faults),
        notes=tuple(findings.notes),
        manifest=stated,
        key=key,
        trusted=key is not None and key == trusted_key,
        digest=None if data is None else manifest.digest(data),
    )


class _Findings:
    """What has been found so far."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.notes: list[str] = []

    def add(self, code: str, where: str, sentence: str) -> None:
        self.faults.append(Fault(code, where, sentence))

    def attempt(
        self,
        code: str,
        where: str,
        work: Callable[_Given, _Result],
        *args: _Given.args,
        **named: _Given.kwargs,
    ) -> _Result | None:
        """Return what `work` returns, or None where it refuses; the refusal becomes a fault."""
        try:
            return work(*args, **named)
        except PackageError as err:
            self.add(code, where, str(err))
            return None


def _read_manifest(data: bytes, findings: _Findings) -> Manifest | None:
    try:
        return manifest.read(data)
    except BadManifestError as err:
        for problem in err.problems:
            findings.add("manifest", manifest.MANIFEST, problem)
        return None


def _check_signature(
    files: Mapping[str, bytes],
    stated: Manifest | None,
    trusted_key: str | None,
    findings: _Findings,
) -> str | None:
    """Return the fingerprint of the key whose signature over these manifest bytes holds."""
    where = manifest.SIGNATURE
    if where not in files:
        findings.add("missing_file", where, "it is missing: nobody has signed this package")
        return None
    signed = findings.attempt("signature", where, open_envelope, files[where])
    if signed is None:
        return None
    if signed.payload != files.get(manifest.MANIFEST):
        findings.add(
            "signature", where, f"what was signed is not {manifest.MANIFEST} as it lies here"
        )
        return None
    if stated is not None and stated.key != signed.key:
        findings.add(
            "other_key", where, f"signed by key {signed.key}, but the manifest names {stated.key}"
        )
    if trusted_key is not None and signed.key != trusted_key:
        findings.add(
            "untrusted_key", where, f"signed by key {signed.key}, expected was {trusted_key}"
        )
    return signed.key


def _listed(data: bytes | None, stated: Manifest | None) -> Mapping[str, tuple[Any, Any]]:
    """Return (sha256, size) by path as the manifest lists them, as far as a broken one can be read."""
    if stated is not None:
        return {path: (entry.sha256, entry.size) for path, entry in stated.files.items()}
    try:
        value = canonical.parse(
            data or b"", name=manifest.MANIFEST, limit=manifest.MAX_MANIFEST_BYTES
        )
    except PackageError:
        return {}
    entries = value.get("files") if isinstance(value, dict) else None
    return {
        path: (entry.get("sha256"), entry.get("size"))
        for path, entry in (entries if isinstance(entries, dict) else {}).items()
        if isinstance(entry, dict)
    }


def _check_listing(
    files: Mapping[str, bytes], listed: Mapping[str, tuple[Any, Any]], findings: _Findings
) -> None:
    for path, (sha256, size) in listed.items():
        if path not in files:
            findings.add("missing_file", ascii(path)[1:-1], "it is missing; the manifest lists it")
            continue
        actual = hashlib.sha256(files[path]).hexdigest()
        if actual != sha256:
            findings.add(
                "changed_file",
                path,
                f"it was changed: its sha256 is {actual[:12]}…, the manifest says {ascii(str(sha256)[:12])[1:-1]}…",
            )
        elif len(files[path]) != size:
            findings.add(
                "changed_file", path, f"it has {len(files[path])} bytes, the manifest says {size!a}"
            )
    if not listed:
        return  # the manifest could not be read; that is the fault, not every file beside it
    for path in files:
        if path not in listed and path not in (manifest.MANIFEST, manifest.SIGNATURE):
            findings.add(
                "extra_file", path, "it does not belong here; the manifest does not list it"
            )


def _check_contents(files: Mapping[str, bytes], stated: Manifest, findings: _Findings) -> None:
    """Check what is in the files that are there, changed or not: several faults are all worth knowing."""
    arrays = _check_tensors(files, stated, findings)
    _check_previews(files, stated, arrays, findings)
    for path, code, check in (
        (manifest.EVALUATION, "evaluation", reports.find_evaluation_faults),
        (manifest.PRIVACY, "privacy", reports.find_privacy_faults),
        (manifest.CROISSANT, "croissant", croissant.find_faults),
    ):
        if path in files:
            value = findings.attempt(code, path, canonical.parse, files[path], name=path)
            for sentence in [] if value is None else check(value, stated):
                findings.add(code, path, sentence)
            if (
                path == manifest.PRIVACY
                and isinstance(value, dict)
                and value.get("verdict") == "failed"
            ):
                findings.notes.append("the privacy verdict of this package is: failed")
    if manifest.CARD in files:
        text = findings.attempt("card", manifest.CARD, _card_text, files[manifest.CARD])
        for sentence in [] if text is None else card.find_faults(text):
            findings.add("card", manifest.CARD, sentence)


def _card_text(data: bytes) -> str:
    if len(data) > card.MAX_CARD_BYTES:
        raise PackageError(f"it has {len(data)} bytes; at most {card.MAX_CARD_BYTES} are allowed")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise PackageError("it is not UTF-8 text") from None


def _check_tensors(
    files: Mapping[str, bytes], stated: Manifest, findings: _Findings
) -> tensors.Arrays | None:
    where = manifest.TENSORS
    if where not in files:
        return None
    arrays = findings.attempt("tensors", where, tensors.read_tensors, files[where])
    if arrays is None:
        return None
    shape, wanted = arrays.images_ICHW.shape, (stated.images, *stated.image_shape)
    if shape != wanted:
        findings.add(
            "tensors", where, f"images have shape {list(shape)}, the manifest says {list(wanted)}"
        )
    if arrays.images_ICHW.dtype.name != stated.dtype:
        findings.add(
            "tensors",
            where,
            f"images are {arrays.images_ICHW.dtype.name}, the manifest says {stated.dtype}",
        )
    if (arrays.labels.ndim == 1) != (stated.label_kind == "hard"):
        findings.add("tensors", where, f"labels are not {stated.label_kind}, as the manifest says")
    value_faults = tensors.find_faults(arrays, classes=len(stated.classes))
    for code, sentence in value_faults:
        findings.add(code, where, sentence)
    rate = arrays.learning_rate
    low, high = manifest.MIN_LEARNING_RATE, manifest.MAX_LEARNING_RATE
    if math.isfinite(rate) and not low <= rate <= high:
        findings.add(
            "learning_rate",
            where,
            f"the learned learning rate {rate:g} lies outside {low:g} to {high:g}",
        )
    if math.isfinite(rate) and np.float32(rate) != np.float32(stated.learning_rate):
        findings.add(
            "learning_rate", where, f"it is {rate:g}, the manifest says {stated.learning_rate:g}"
        )
    if stated.label_kind == "hard" and not value_faults:
        counts = np.bincount(arrays.label_of_image_I, minlength=len(stated.classes))
        if (counts != stated.images_per_class).any():
            findings.add(
                "label_count", where, f"not every class has {stated.images_per_class} images"
            )
    return arrays


def _check_previews(
    files: Mapping[str, bytes], stated: Manifest, arrays: tensors.Arrays | None, findings: _Findings
) -> None:
    """Every preview must be a clean PNG and show the image it stands for."""
    sheet = manifest.CONTACT_SHEET
    if sheet in files:
        findings.attempt("preview", sheet, previews.check_png, files[sheet], name=sheet)
    grey = None if arrays is None else tensors.to_grey_IHW(arrays, mean=stated.mean, std=stated.std)
    for index in range(stated.images):
        path = manifest.preview_path(index)
        if path not in files:
            continue
        pixels = findings.attempt("preview", path, previews.read_image, files[path], name=path)
        if pixels is None or grey is None or index >= len(grey):
            continue
        if pixels.shape != grey[index].shape or np.abs(pixels.astype(int) - grey[index]).max() > 1:
            findings.add("preview", path, f"it does not show image {index} of {manifest.TENSORS}")

"""Is this package what it says, whole, sound, and by whom? Every fault is found and named.

Torch-free, so that a node and a reviewer need no GPU software. Files are hashed and images looked at part by part:
however large a package is, checking it takes some tens of megabytes of memory. What may be done with a sound
package (grants, privacy policy) is decided elsewhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ppdd_core.errors import BadManifestError, PackageError, SignatureError, UnsafeArchiveError
from ppdd_core.package import canonical, card, croissant, manifest, previews, reports, tensors
from ppdd_core.package.archive import (
    WHAT_IT_IS,
    Contents,
    Files,
    Unsafe,
    in_files,
    read_files,
    title,
)
from ppdd_core.package.manifest import Manifest
from ppdd_core.package.signature import MAX_ENVELOPE_BYTES, open_envelope, parse_fingerprint
from ppdd_core.package.tensors import StoredTensors, open_tensors

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
    """A package in which nothing was wrong: its manifest and the very bytes that were checked.

    They are read when they are asked for; PackageError where somebody changed them since.
    """

    manifest: Manifest
    files: Files
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
        return Contents(in_files({}), ())
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
    findings, held = _Findings(), in_files(files)
    if manifest.MANIFEST not in {*held, *(entry.where for entry in refused)}:
        findings.add(
            "missing_file",
            manifest.MANIFEST,
            f"it is missing, so this is not a package; {WHAT_IT_IS}",
        )
        return Verification(tuple(findings.faults), (), None, None, False, None)
    for entry in refused:
        findings.add("unsafe_entry", ascii(entry.where)[1:-1], entry.reason)
    present = manifest.MANIFEST in held
    data = None
    if present:
        data = findings.attempt(
            "manifest",
            manifest.MANIFEST,
            held.small,
            manifest.MANIFEST,
            manifest.MAX_MANIFEST_BYTES,
        )
    else:
        findings.add("missing_file", manifest.MANIFEST, "it is missing")
    stated = None if data is None else _read_manifest(data, findings)
    key = _check_signature(held, data, stated, trusted_key, findings)
    _check_listing(held, _listed(data, stated), findings)
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
        _check_contents(held, stated, findings)
    elif manifest.TENSORS in held:
        findings.attempt("tensors", manifest.TENSORS, _open_tensors, held)
    return Verification(
        faults=tuple(findings.faults),
        notes=tuple(findings.notes),
        manifest=stated,
        key=key,
        trusted=key is not None and key == trusted_key,
        digest=held.sha256(manifest.MANIFEST) if present else None,
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
    files: Files,
    data: bytes | None,
    stated: Manifest | None,
    trusted_key: str | None,
    findings: _Findings,
) -> str | None:
    """Return the fingerprint of the key whose signature over `data`, the manifest, holds."""
    where = manifest.SIGNATURE
    if where not in files:
        findings.add("missing_file", where, "it is missing: nobody has signed this package")
        return None
    envelope = findings.attempt("signature", where, files.small, where, MAX_ENVELOPE_BYTES)
    if envelope is None:
        return None
    signed = findings.attempt("signature", where, open_envelope, envelope)
    if signed is None:
        return None
    if signed.payload != data:
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
    files: Files, listed: Mapping[str, tuple[Any, Any]], findings: _Findings
) -> None:
    for path, (sha256, size) in listed.items():
        if path not in files:
            findings.add("missing_file", ascii(path)[1:-1], "it is missing; the manifest lists it")
            continue
        actual = files.sha256(path)
        if actual != sha256:
            findings.add(
                "changed_file",
                path,
                f"it was changed: its sha256 is {actual[:12]}…, the manifest says {ascii(str(sha256)[:12])[1:-1]}…",
            )
        elif files.size(path) != size:
            findings.add(
                "changed_file", path, f"it has {files.size(path)} bytes, the manifest says {size!a}"
            )
    if not listed:
        return  # the manifest could not be read; that is the fault, not every file beside it
    for path in files:
        if path not in listed and path not in (manifest.MANIFEST, manifest.SIGNATURE):
            findings.add(
                "extra_file", path, "it does not belong here; the manifest does not list it"
            )


def _check_contents(files: Files, stated: Manifest, findings: _Findings) -> None:
    """Check what is in the files that are there, changed or not: several faults are all worth knowing."""
    stored = _check_tensors(files, stated, findings)
    _check_previews(files, stated, stored, findings)
    for path, code, check in (
        (manifest.EVALUATION, "evaluation", reports.find_evaluation_faults),
        (manifest.PRIVACY, "privacy", reports.find_privacy_faults),
        (manifest.CROISSANT, "croissant", croissant.find_faults),
    ):
        if path in files:
            _check_report(files, path, code, check, stated, findings)
    if manifest.CARD in files:
        text = findings.attempt("card", manifest.CARD, _card_text, files)
        for sentence in [] if text is None else card.find_faults(text):
            findings.add("card", manifest.CARD, sentence)


def _check_report(
    files: Files,
    path: str,
    code: str,
    check: Callable[[Any, Manifest], list[str]],
    stated: Manifest,
    findings: _Findings,
) -> None:
    value = findings.attempt(code, path, _parse, files, path)
    for sentence in [] if value is None else check(value, stated):
        findings.add(code, path, sentence)
    if path == manifest.PRIVACY and isinstance(value, dict) and value.get("verdict") == "failed":
        findings.notes.append("the privacy verdict of this package is: failed")


def _parse(files: Files, path: str) -> Any:
    return canonical.parse(files.small(path, canonical.MAX_JSON_BYTES), name=path)


def _card_text(files: Files) -> str:
    try:
        return files.small(manifest.CARD, card.MAX_CARD_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise PackageError("it is not UTF-8 text") from None


def _open_tensors(files: Files) -> StoredTensors:
    where = manifest.TENSORS
    return open_tensors(lambda start, length: files.part(where, start, length), files.size(where))


def _check_tensors(files: Files, stated: Manifest, findings: _Findings) -> StoredTensors | None:
    where = manifest.TENSORS
    if where not in files:
        return None
    stored = findings.attempt("tensors", where, _open_tensors, files)
    if stored is None:
        return None
    shape, wanted = stored.shape_ICHW, (stated.images, *stated.image_shape)
    if shape != wanted:
        findings.add(
            "tensors", where, f"images have shape {list(shape)}, the manifest says {list(wanted)}"
        )
    if stored.dtype.name != stated.dtype:
        findings.add(
            "tensors", where, f"images are {stored.dtype.name}, the manifest says {stated.dtype}"
        )
    if (stored.labels.ndim == 1) != (stated.label_kind == "hard"):
        findings.add("tensors", where, f"labels are not {stated.label_kind}, as the manifest says")
    value_faults = tensors.find_faults(stored, classes=len(stated.classes))
    for code, sentence in value_faults:
        findings.add(code, where, sentence)
    rate = stored.learning_rate
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
        counts = np.bincount(tensors.strongest(stored.labels), minlength=len(stated.classes))
        if (counts != stated.images_per_class).any():
            findings.add(
                "label_count", where, f"not every class has {stated.images_per_class} images"
            )
    return stored


def _check_previews(
    files: Files, stated: Manifest, stored: StoredTensors | None, findings: _Findings
) -> None:
    """Every preview must be a clean PNG and show the image it stands for."""
    sheet = manifest.CONTACT_SHEET
    if sheet in files:
        findings.attempt("preview", sheet, _check_sheet, files)
    shown = iter(()) if stored is None else _grey_images(stored, stated)
    for index in range(stated.images):
        grey = next(shown, None)
        path = manifest.preview_path(index)
        if path not in files:
            continue
        pixels = findings.attempt("preview", path, _read_preview, files, path)
        if pixels is None or grey is None:
            continue
        if pixels.shape != grey.shape or np.abs(pixels.astype(np.int16) - grey).max() > 1:
            findings.add("preview", path, f"it does not show image {index} of {manifest.TENSORS}")


def _check_sheet(files: Files) -> None:
    sheet = manifest.CONTACT_SHEET
    previews.check_png(files.small(sheet, previews.MAX_SHEET_BYTES), name=sheet)


def _read_preview(files: Files, path: str) -> previews.Grey:
    return previews.read_image(files.small(path, previews.MAX_IMAGE_BYTES), name=path)


def _grey_images(stored: StoredTensors, stated: Manifest) -> Iterator[previews.Grey]:
    for _, images_ICHW in stored.parts():
        yield from tensors.to_grey_IHW(images_ICHW, mean=stated.mean, std=stated.std)

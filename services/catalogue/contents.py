"""Package files on their way into the store: verified as a whole, then each object put under its digest."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import UUID

from ppdd_core.config import PrivacyConfig
from ppdd_core.errors import PackageError, SignatureError, UnsafeArchiveError
from ppdd_core.package import canonical
from ppdd_core.package import manifest as manifests
from ppdd_core.package.archive import Files, title, write_archive
from ppdd_core.package.signature import fingerprint
from ppdd_core.package.verify import VerifiedPackage, read_package, refusal, verify_files
from ppdd_core.privacy.report import Verdict, recompute_verdict
from services.kit.db import new_id
from services.kit.holds import hold
from services.kit.resources import Resources
from services.kit.storage import CHUNK

LONGEST_NAME = 100  # characters after the site, as many as the catalogue keeps
SMALL = 4 * CHUNK  # bytes of a file that goes into the store from memory
_AT_WORK = Lock()  # checking a package takes a core and some memory: one at a time in each process
POLICY = PrivacyConfig()  # this site's thresholds, whatever ones a report was made with


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a package, and the object that holds it."""

    path: str
    sha256: str
    size: int  # bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class StoredPackage:
    """A package in which nothing is wrong and whose bytes are in the store."""

    manifest: dict[str, Any]
    site: str
    name: str  # without the site
    version: str
    digest: str  # sha256 of manifest.json
    key: str  # fingerprint of the signer
    pinned: bool  # whether the caller named that key
    ours: bool  # of this site, and signed by its key
    verdict: Verdict  # under this site's policy
    archive_sha256: str
    archive_size: int
    files: tuple[StoredFile, ...]
    holder: UUID  # keeps garbage collection away until `add_version` has written the rows

    @property
    def title(self) -> str:
        """`site/name@version`."""
        return f"{self.site}/{self.name}@{self.version}"


def store_package(
    resources: Resources,
    path: Path,
    *,
    key: str | None = None,
    today: date | None = None,
    name: str | None = None,
    expected: str | None = None,
) -> StoredPackage:
    """Return the package in `path`, a folder or a ZIP, after everything in it was verified and stored.

    PackageError names what is wrong with it; SignatureError where it was not signed by `key` (a fingerprint), or
    where it names this site without being signed by this site's key. `today` refuses a permission that has ended,
    `expected` any other `site/name@version`; messages call the package `name`.

    Nothing refers to the objects until `add_version` does; they are held for it.
    """
    with _AT_WORK:
        package = _verified(path, key, today, name or path.name)
        inside = f"{package.manifest.name}@{package.manifest.version}"
        if expected is not None and inside != expected:
            raise PackageError(f"{name or path.name} is {inside}, wanted was {expected}")
        resources.settings.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=resources.settings.spool_dir) as folder:
            archive = Path(folder) / "package.zip"
            write_archive(package.files, archive)
            stored = _described(resources, package, archive, pinned=key is not None)
            objects = {stored.archive_sha256, *(file.sha256 for file in stored.files)}
            hold(resources.sessions, objects, stored.holder)
            for file in stored.files:
                _put(resources, package.files, file, Path(folder) / "file")
            resources.store.put_file(archive, stored.archive_sha256)
    return stored


def _put(resources: Resources, files: Files, file: StoredFile, aside: Path) -> None:
    """Put one file into the store; a large one by way of `aside`, and not through memory."""
    if file.size <= SMALL:
        resources.store.put(files[file.path])
        return
    with aside.open("wb") as whole:
        whole.writelines(files.pieces(file.path))
    resources.store.put_file(aside, file.sha256)
    aside.unlink()


def _verified(path: Path, key: str | None, today: date | None, name: str) -> VerifiedPackage:
    """Return the package if nothing is wrong with it; no message says where it lies."""
    try:
        contents = read_package(path)
    except UnsafeArchiveError as error:
        raise UnsafeArchiveError(f"{name}: {str(error).removeprefix(f'{title(path)}: ')}") from None
    found = verify_files(contents.files, refused=contents.refused, trusted_key=key, today=today)
    if found.manifest is None or not found.ok:
        raise refusal(found, name)
    return VerifiedPackage(found.manifest, contents.files, found)


def _described(
    resources: Resources, package: VerifiedPackage, archive: Path, *, pinned: bool
) -> StoredPackage:
    stated, key = package.manifest, package.verification.key
    assert key is not None  # a package without a signature is not sound
    own_site = stated.site_id == resources.settings.site_id
    if own_site and key != fingerprint(resources.key):
        raise SignatureError(
            f"{stated.name}@{stated.version} says that it is from this site ({stated.site_id}), but this site's key "
            "did not sign it"
        )
    site, _, name = stated.name.partition("/")
    if len(name) > LONGEST_NAME:
        raise PackageError(f"the name of {stated.name} has more than {LONGEST_NAME} characters")
    data = package.files[manifests.MANIFEST]
    report = canonical.parse(package.files[manifests.PRIVACY], name=manifests.PRIVACY)
    return StoredPackage(
        manifest=canonical.parse(data, name=manifests.MANIFEST),
        site=site,
        name=name,
        version=stated.version,
        digest=manifests.digest(data),
        key=key,
        pinned=pinned,
        ours=own_site,
        verdict=recompute_verdict(report, POLICY)[0],
        archive_sha256=_digest_of(archive),
        archive_size=archive.stat().st_size,
        files=tuple(_file(package, path) for path in package.files),
        holder=new_id(),
    )


def _file(package: VerifiedPackage, path: str) -> StoredFile:
    listed = package.manifest.files.get(path)
    media_type = "application/json" if listed is None else listed.media_type  # manifest, signature
    return StoredFile(path, package.files.sha256(path), package.files.size(path), media_type)


def _digest_of(path: Path) -> str:
    digest = sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()

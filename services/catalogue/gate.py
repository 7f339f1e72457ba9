"""The release gate: what the store holds of a version is read and judged again; its row is not asked."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ppdd_core.errors import PackageError
from ppdd_core.package import canonical
from ppdd_core.package import manifest as manifests
from ppdd_core.package.archive import Files, read_files
from ppdd_core.package.signature import fingerprint
from ppdd_core.package.verify import verify_files
from ppdd_core.privacy.report import Verdict, recompute_verdict
from services.catalogue.contents import POLICY
from services.catalogue.models import PackageFile, PackageVersion
from services.kit.resources import Resources
from services.kit.storage import ObjectDamagedError, ObjectMissingError


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the stored artefacts deserve. Where `altered` says anything, no reason of a steward can help."""

    altered: tuple[str, ...]  # what is missing, damaged, or not what was signed
    verdict: Verdict  # of the privacy report, under this site's policy
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing stands against a release."""
        return not self.altered and self.verdict == "passed"


def judge(resources: Resources, version: PackageVersion, files: Sequence[PackageFile]) -> Judgement:
    """Return what the artefacts of `version` in the store deserve: signature, hashes, and the privacy report.

    The archive is read as a peer would, every single file beside it, and both must be the same package. StoreError
    only where the store does not answer.
    """
    try:
        found = _archived_files(resources, version)
        altered = _differences(resources, files, found)
    except (ObjectMissingError, ObjectDamagedError, PackageError) as error:
        return _refused(str(error))
    sound = verify_files(found, trusted_key=fingerprint(resources.key))
    altered += [str(fault) for fault in sound.faults]
    if sound.digest != version.digest:
        altered.append("the manifest in the store is not the one that this version was added with")
    if altered:
        return _refused(*altered)
    return judge_report(found[manifests.PRIVACY])


def judge_report(data: bytes) -> Judgement:
    """Return what a `privacy.json` deserves under this site's policy."""
    report = canonical.parse(data, name=manifests.PRIVACY)
    own_word, own_reasons = recompute_verdict(report)
    if (report.get("verdict"), report.get("reasons")) != (own_word, own_reasons):
        return _refused(*own_reasons)
    word, reasons = recompute_verdict(report, POLICY)
    return Judgement((), word, tuple(reasons))


def _refused(*reasons: str) -> Judgement:
    return Judgement(reasons or ("the privacy report does not hold together",), "failed", ())


def _archived_files(resources: Resources, version: PackageVersion) -> Files:
    """Return the files of the archive, which stays open though its folder is gone."""
    resources.settings.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=resources.settings.spool_dir) as folder:
        archive = Path(folder) / "package.zip"
        resources.store.fetch(version.archive_sha256, archive)
        contents = read_files(archive)
    if contents.refused:
        raise PackageError(f"the archive holds an entry that is refused: {contents.refused[0]}")
    return contents.files


def _differences(resources: Resources, files: Sequence[PackageFile], found: Files) -> list[str]:
    """Return where the single files are not those of the archive; each object is read and so checked."""
    if {file.path for file in files} != set(found):
        return ["the files of this version are not those of its archive"]
    wrong = []
    for file in files:
        if found.sha256(file.path) != file.sha256:
            wrong.append(f"{file.path} is not the one in the archive")
        for _ in resources.store.read(file.sha256):
            pass
    return wrong

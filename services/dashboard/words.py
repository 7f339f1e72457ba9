"""What codes of the node mean, as a page says it: in English, which is what the tables of other languages translate."""

from __future__ import annotations

from services.auth.permissions import Role, Scope

# What a package's states and codes are called.
ORIGINS = {
    "made": "made here",
    "imported": "came as a file",
    "pulled": "fetched from its node",
}
SPLITS = {"test": "patients held out for the test", "all": "all images"}
VERDICTS = {"passed": "Verdict: passed.", "failed": "Verdict: failed."}

SCOPES = {
    Scope.DATASETS_READ: "see source datasets and what was found in them",
    Scope.DATASETS_WRITE: "register, upload and remove source datasets",
    Scope.IMAGES_READ: "see real images",
    Scope.JOBS_READ: "see jobs, their logs, and the node itself",
    Scope.JOBS_WRITE: "start and cancel jobs: check, distil, pull",
    Scope.PACKAGES_READ: "see and download packages",
    Scope.PACKAGES_RELEASE: "import, release and yank packages",
    Scope.DETECTORS_READ: "see and download detectors",
    Scope.DETECTORS_WRITE: "train detectors, measure them, and ask them about an image",
    Scope.AUDIT_READ: "read, check and export the audit log",
    Scope.ADMIN: "administer users",
}
ROLES = {
    Role.RESEARCHER: "distils, trains detectors, and sees images",
    Role.STEWARD: "as a researcher, and decides what is released",
    Role.ADMIN: "as a steward, and administers people and the node",
    Role.AUDITOR: "reads everything but images, and changes nothing",
    Role.PEER: "another hospital, which downloads released packages by token",
}

"""Every error this package raises on purpose, as one tree.

PpddError
├── BadConfigError           a recipe or an option that cannot work; says which field and what it may be
├── SourceError              a source dataset cannot be used
│   ├── UnsafeSourceError        a path leaves its root, or an archive or image is a bomb
│   └── BadImageError            one image cannot be decoded (skipped and counted by the loader)
├── TrainingError            training cannot go on (diverged, nothing learned, interrupted store)
│   └── TeacherKilledError       a teacher's process was killed, probably for want of memory
├── CheckpointError          saved state that does not belong to this run, or is damaged
├── PackageError             a package cannot be read or trusted
│   ├── BadManifestError         the manifest breaks the format; carries every problem found
│   ├── DigestMismatchError      a file's bytes are not the bytes its manifest names
│   ├── SignatureError           signature missing, wrong, or by another key than expected
│   └── UnsafeArchiveError       an archive entry that leaves the folder, repeats, links, or is too large
└── Interrupted              the user stopped the work; what is on disk can be resumed

The message is for the person at the keyboard: what is wrong, where, and what to do about it.
"""


class PpddError(Exception):
    """Anything this package refuses on purpose."""


class BadConfigError(PpddError):
    """A recipe or an option that cannot work."""


class SourceError(PpddError):
    """A source dataset cannot be used."""


class UnsafeSourceError(SourceError):
    """A path leaves its root, or an archive or image would fill the machine."""


class BadImageError(SourceError):
    """One image cannot be decoded."""


class TrainingError(PpddError):
    """Training cannot go on."""


class TeacherKilledError(TrainingError):
    """A teacher's process was killed, probably for want of memory; trying again goes on from what is stored."""


class CheckpointError(PpddError):
    """Saved state that does not belong to this run, or is damaged."""


class PackageError(PpddError):
    """A package cannot be read or trusted."""


class BadManifestError(PackageError):
    """The manifest breaks the format.

    `problems` holds every fault found, one sentence each.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("the manifest is not valid: " + "; ".join(problems))
        self.problems = problems


class DigestMismatchError(PackageError):
    """A file's bytes are not the bytes its manifest names."""

    def __init__(self, name: str, *, expected: str, actual: str) -> None:
        super().__init__(
            f"{name} was changed: its sha256 is {actual[:12]}…, the manifest says {expected[:12]}…"
        )
        self.name, self.expected, self.actual = name, expected, actual


class SignatureError(PackageError):
    """The signature is missing, wrong, or by another key than expected."""


class UnsafeArchiveError(PackageError):
    """An archive entry that leaves the folder, repeats, links, or is too large."""


class BenchmarkError(PpddError):
    """A side of a benchmark could not be measured."""


class Interrupted(PpddError):  # noqa: N818 - not a fault: the user asked for it
    """The user stopped the work; what is on disk can be resumed."""

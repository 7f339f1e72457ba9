"""What an error means for a job: whether it is tried again, can go on, and what a person is told."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from ppdd_core.errors import (
    BadConfigError,
    PackageError,
    SourceError,
    TeacherKilledError,
    TrainingError,
)
from services.jobs.models import Kind
from services.kit.errors import ConflictError, UnavailableError
from services.kit.storage import ObjectMissingError, StoreError, StoreFullError
from worker import run
from worker.run import TASKS, explain


def chained() -> Exception:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot write the checkpoint") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "slug", "retry", "resumable"),
    [
        pytest.param(OSError(errno.ENOSPC, "full"), "disk-full", False, True, id="disk full"),
        pytest.param(chained(), "disk-full", False, True, id="disk full, told by another"),
        pytest.param(StoreFullError("full"), "disk-full", False, True, id="store full"),
        pytest.param(MemoryError(), "out-of-memory", True, True, id="memory"),
        pytest.param(TeacherKilledError("killed"), "out-of-memory", True, True, id="teacher killed"),
        pytest.param(
            RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out-of-memory", True, True,
            id="torch out of memory",
        ),
        pytest.param(
            ImportError("libtorch.so: failed to map segment from shared object"), "out-of-memory", True, True,
            id="library without room",
        ),
        pytest.param(OSError(errno.ENOMEM, "no"), "out-of-memory", True, True, id="no memory"),
        pytest.param(StoreError("away"), "store-unavailable", True, True, id="store away"),
        pytest.param(UnavailableError("away"), "unavailable", True, True, id="peer away"),
        pytest.param(
            OperationalError("select", {}, Exception("away")), "database-unavailable", True, True,
            id="database away",
        ),
        pytest.param(ObjectMissingError("gone"), "object-missing", False, False, id="object gone"),
        pytest.param(ConflictError("taken"), "conflict", False, True, id="refused by a rule"),
        pytest.param(BadConfigError("no"), "bad-config", False, True, id="bad recipe"),
        pytest.param(PackageError("no"), "bad-package", False, True, id="bad package"),
        pytest.param(TrainingError("diverged"), "refused", False, True, id="diverged"),
        pytest.param(KeyError("image_size"), "internal", False, True, id="bug"),
    ],
)  # fmt: skip
def test_errors_become_ends(error: Exception, slug: str, retry: bool, resumable: bool) -> None:
    failure = explain(error)
    assert (failure.slug, failure.retry, failure.resumable) == (slug, retry, resumable)
    assert failure.detail


def test_names_of_files_are_not_told() -> None:
    assert "anna" not in explain(SourceError("'anna_meier_1.png' cannot be read")).detail


def test_neither_by_a_bugs_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        Path("/nowhere/anna_meier_1.png").read_bytes()
    except FileNotFoundError as error:
        explain(error)
    printed = capfd.readouterr().err
    assert "FileNotFoundError" in printed and "test_run.py" in printed
    assert "/nowhere/anna_meier_1.png: " not in printed.replace("Path(", "")


def test_every_kind_of_job_has_its_task() -> None:
    folder = Path(__file__).parents[2]
    missing = [
        name for name in TASKS.values() if not (folder / f"{name.replace('.', '/')}.py").exists()
    ]
    assert set(TASKS) == set(Kind) and not missing


def test_an_attempt_waits_for_the_process_of_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "FOLDER_SECONDS", 0.3)
    with (
        run._alone_in(tmp_path),
        pytest.raises(UnavailableError, match="earlier attempt"),
        run._alone_in(tmp_path),
    ):
        pass
    with run._alone_in(tmp_path):
        pass

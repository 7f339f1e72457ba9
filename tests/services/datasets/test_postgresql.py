"""What another database might do differently: two at once, and asking the table of jobs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import Role
from services.auth.principal import Principal
from services.datasets import repository, service
from services.datasets.service import Checked, DatasetExistsError, DatasetInUseError, Description
from services.jobs import submit
from services.kit.db import Base, new_id
from services.kit.resources import Resources, open_resources
from services.settings import load_settings
from tests.services.conftest import Bell
from tests.services.datasets.images import class_files, write_folder


@pytest.fixture
def resources(postgres_url: str, tmp_path: Path, bell: Bell) -> Iterator[Resources]:
    """A node on PostgreSQL, with two datasets below its root."""
    for name in ("one", "two"):
        write_folder(tmp_path / "images" / name, class_files())
    settings = load_settings(
        {},
        data_dir=tmp_path / "node",
        data_roots=(tmp_path / "images",),
        database={"url": postgres_url},
    )
    with open_resources(settings, send=bell) as made:
        Base.metadata.create_all(made.engine)
        yield made


@pytest.fixture
def owner(resources: Resources) -> Principal:
    with resources.sessions.begin() as session:
        user = auth.create_user(
            session, SYSTEM, username="rita", display_name="Rita", role=Role.RESEARCHER
        )
        return Principal(user.id, "rita", Role.RESEARCHER, "token", new_id())


def test_of_two_who_take_a_name_at_once_one_is_told(resources: Resources, owner: Principal) -> None:
    outcomes: list[str] = []
    together = threading.Barrier(2)

    def register(path: str) -> None:
        try:
            with resources.transaction() as session:
                service.refuse_known(session, Description("x", "X"))
                together.wait(10)  # both have seen that the name is free
                service.register(
                    session, owner, Description("x", "X"), resources.settings.data_roots, path=path
                )
            outcomes.append("made")
        except DatasetExistsError as refused:
            outcomes.append("refused" if refused.facts["dataset_id"] else "refused by nothing")

    threads = [threading.Thread(target=register, args=(path,)) for path in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["made", "refused"]


def test_a_dataset_with_jobs_stays_and_its_findings_survive(
    resources: Resources, owner: Principal
) -> None:
    findings: dict[str, Any] = {"refusal": None, "classes": {"ä \N{SNOWMAN}": 3}, "findings": []}
    with resources.transaction() as session:
        dataset = service.register(
            session,
            owner,
            Description("x", "X", {"a": "b"}),
            resources.settings.data_roots,
            path="one",
        )
        submit.submit_check(
            session, resources.settings, owner, dataset.id, image_size=112, idempotency_key=None
        )
        service.record_check(
            session, dataset.id, Checked(True, 112, findings, "f" * 64, {("é", 0): "0" * 64})
        )
    with resources.sessions() as session:
        assert service.get(session, dataset.id).findings == findings
        assert repository.thumbnail(session, dataset.id, "é", 0) is not None
        with pytest.raises(DatasetInUseError):
            service.remove(session, owner, dataset.id)

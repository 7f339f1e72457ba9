"""The whole API against its own description: no fault of ours (5xx), no undocumented status, no other shape.

Requests come from the description (Schemathesis); half of them name things that are there. The default run tries a few
per operation and role, always the same ones; `PPDD_TEST_FUZZ_EXAMPLES=100` tries more, and others each time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.app import create_app
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.permissions import PERMISSIONS, Role, role_scopes
from services.datasets.models import SourceDataset
from services.jobs.models import Job, Kind, State
from services.kit.db import Base
from services.kit.resources import open_resources
from services.settings import load_settings
from tests.services.packages import add_package, give_key, package_files

EXAMPLES = int(os.environ.get("PPDD_TEST_FUZZ_EXAMPLES", "2"))
ROLES = ("anonymous", *Role)
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
# A stream is read to its end, so it is asked for only of a job that has ended; its events have shapes of their own.
FOLLOW = "jobs_events"


schemathesis.serializer.alias(
    ["application/zip", "application/dicom", "image/png", "image/jpeg"], "application/octet-stream"
)


@dataclass(frozen=True)
class Target:
    """A node with one thing of each kind, and who may ask it."""

    schema: Any  # Schemathesis ships no types for what is asked of it here
    client: TestClient
    headers: dict[str, dict[str, str]]
    things: dict[str, str]


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    with tempfile.TemporaryDirectory() as folder:
        chosen = load_settings(
            {},
            site_id="hospital-a",
            data_dir=Path(folder) / "node",
            limits={"disk_reserve_bytes": 0},
        )
        with open_resources(chosen, send=lambda *_: None) as resources:
            Base.metadata.create_all(resources.engine)
            give_key(chosen)
            headers: dict[str, dict[str, str]] = {"anonymous": {}}
            with resources.sessions.begin() as session:
                for role in Role:
                    user = auth.create_user(
                        session, SYSTEM, username=role.value, display_name=role.value, role=role
                    )
                    _, token = auth.issue_token(
                        session, SYSTEM, user, name="fuzz", scopes=role_scopes(role), days=1
                    )
                    headers[role.value] = {"Authorization": f"Bearer {token}"}
                job = Job(
                    kind=Kind.CHECK.value, state=State.FAILED.value, title="x", owner_id=user.id, attempts=1,
                    max_attempts=5, fence=1, spec={}, error={"slug": "x", "detail": "x", "resumable": True},
                )  # fmt: skip
                dataset = SourceDataset(
                    name="chest",
                    title="x",
                    owner_id=user.id,
                    path="/nowhere",
                    rows={},
                    state="registered",
                )
                session.add_all([job, dataset])
                session.flush()
                things = {
                    "job_id": str(job.id),
                    "dataset_id": str(dataset.id),
                    "user_id": str(user.id),
                }
            add_package(resources, Path(folder), package_files("hospital-a", "cxr", "1.0.0"))
            things |= {
                "site": "hospital-a",
                "name": "cxr",
                "version": "1.0.0",
                "path": "manifest.json",
            }
            app = create_app(resources)
            with TestClient(app, raise_server_exceptions=False) as client:
                schema = schemathesis.openapi.from_dict(client.get("/api/v1/openapi.json").json())
                yield Target(schema, client, headers, things)


@pytest.mark.parametrize(
    "operation_id", sorted(name for name in PERMISSIONS if not name.startswith("pages_"))
)
def test_answers_are_those_described(target: Target, operation_id: str) -> None:
    operation = target.schema.find_operation_by_id(operation_id)

    @settings(
        max_examples=EXAMPLES, database=None, deadline=None, derandomize=EXAMPLES < 10, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(), there=st.booleans())
    def ask(case: Any, there: bool) -> None:
        if there or operation_id == FOLLOW:
            asked = [name for name in case.path_parameters if name in target.things]
            case.path_parameters.update({name: target.things[name] for name in asked})
        for role in ROLES:
            answer = target.client.request(**_request(case, target.headers[role]))
            checks = [
                check
                for check in CHECKS
                if operation_id != FOLLOW or check is not response_schema_conformance
            ]
            case.validate_response(answer, checks=checks)

    ask()


def _request(case: Any, headers: dict[str, str]) -> dict[str, Any]:
    """Return a case as the test client takes it, sent by a caller of ours."""
    sent = case.as_transport_kwargs(base_url="http://testserver")
    sent["content"] = sent.pop("data", None)
    sent["headers"] = {**dict(sent.get("headers") or {}), **headers}
    return {name: value for name, value in sent.items() if value is not None and name != "cookies"}

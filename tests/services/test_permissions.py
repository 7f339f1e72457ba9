"""The authorisation matrix: every operation of the API, asked by every kind of caller, about own and others' things.

Operations come from the API's description and are compared with the table; an operation without a row here, or a row
without an operation, fails. Callers are made once; things that an operation may use up are made for every request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import update
from sqlalchemy.orm import Session

from services.app import create_app
from services.audit.actor import SYSTEM
from services.auth import service as auth
from services.auth.models import ApiToken, User
from services.auth.permissions import PERMISSIONS, Role, Rule, Scope, role_scopes
from services.catalogue.models import PackageVersion, VersionState
from services.datasets.models import SourceDataset
from services.detectors.models import Detector
from services.jobs.models import Job, Kind, State
from services.kit.db import Base, new_id, now
from services.kit.resources import Resources, open_resources
from services.settings import load_settings
from tests.services.packages import add_package, give_key, package_files

API = "/api/v1"
MISSING = "00000000-0000-7000-8000-000000000000"
GUARD = {"/problems/unauthorized", "/problems/forbidden"}  # what a refusal of the caller is called
PERSONS = {
    "owner": Role.RESEARCHER,
    "other": Role.RESEARCHER,
    "steward": Role.STEWARD,
    "admin": Role.ADMIN,
    "auditor": Role.AUDITOR,
}
# Pages have rows too; tests/services/dashboard/test_guard.py asks for them.
OPERATIONS = {name: rule for name, rule in PERMISSIONS.items() if not name.startswith("pages_")}
CALLERS = ("anonymous", *PERSONS, "peer", "token", "unrelated token", "expired token", "revoked token")  # fmt: skip


@dataclass
class Node:
    """A node, people who are logged in, and tokens."""

    resources: Resources
    client: TestClient
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    scoped: dict[Scope | None, dict[str, str]] = field(default_factory=dict)

    @cached_property
    def operations(self) -> dict[str, tuple[str, str, dict[str, Any]]]:
        """Method, path and description of every operation, by its id."""
        paths = self.client.get(f"{API}/openapi.json").json()["paths"]
        return {
            operation["operationId"]: (method.upper(), path, operation)
            for path, methods in paths.items()
            for method, operation in methods.items()
        }

    def ask(self, operation_id: str, caller: str, things: dict[str, str]) -> Response:
        """Call an operation as `caller`, with whatever body it takes, empty."""
        method, path, operation = self.operations[operation_id]
        headers = self.caller_headers(operation_id, caller)
        media_types = list(operation.get("requestBody", {}).get("content", {}))
        content = None
        if media_types:
            headers["Content-Type"] = media_types[0]
            content = b"{}" if media_types[0] == "application/json" else b"x"
        return self.client.request(
            method, path.format_map(things), headers=headers, content=content
        )

    def caller_headers(self, operation_id: str, caller: str) -> dict[str, str]:
        """Return what a caller sends; the unrelated token has every scope but the one that is needed."""
        if caller == "unrelated token":
            return dict(self.scoped[PERMISSIONS[operation_id].scope])
        return dict(self.headers[caller])


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            {}, site_id="hospital-a", data_dir=Path(folder) / "node",
            limits={"disk_reserve_bytes": 0},
        )  # fmt: skip
        with open_resources(settings, send=lambda *_: None) as resources:
            Base.metadata.create_all(resources.engine)
            give_key(settings)
            with TestClient(create_app(resources), raise_server_exceptions=False) as client:
                made = Node(resources, client)
                _add_callers(made)
                _add_packages(made, Path(folder))
                yield made


def _add_callers(node: Node) -> None:
    with node.resources.sessions.begin() as session:
        people = {
            name: auth.create_user(
                session, SYSTEM, username=name, display_name=name.title(), role=role
            )
            for name, role in {**PERSONS, "peer": Role.PEER}.items()
        }
        for name in PERSONS:
            node.headers[name] = _log_in(session, node, people[name])
        admin = people["admin"]
        every = role_scopes(Role.ADMIN)
        node.headers |= {"anonymous": {}, "token": _token(session, admin, every)}
        node.headers["peer"] = _token(session, people["peer"], role_scopes(Role.PEER))
        for scope in Scope:
            node.scoped[scope] = _token(session, admin, every - {scope})
        node.scoped[None] = node.headers["token"]
        for name, change in (
            ("expired token", {"expires_at": now() - timedelta(seconds=1)}),
            ("revoked token", {"revoked_at": now()}),
        ):
            node.headers[name] = _token(session, admin, every, name)
            session.execute(update(ApiToken).where(ApiToken.name == name).values(**change))


def _log_in(session: Session, node: Node, user: User) -> dict[str, str]:
    signed_in = auth.start_session(
        session, user, node.resources.settings.session, user_agent="test", via="password"
    )
    return {"Cookie": f"ppdd_session={signed_in.cookie}", "X-CSRF-Token": signed_in.login.csrf}


def _token(
    session: Session, user: User, scopes: frozenset[Scope], name: str = "test"
) -> dict[str, str]:
    _, text = auth.issue_token(session, SYSTEM, user, name=name, scopes=scopes, days=1)
    return {"Authorization": f"Bearer {text}"}


def _add_packages(node: Node, folder: Path) -> None:
    for name, version, state in (
        ("cxr", "1.0.0", VersionState.RELEASED),
        ("cxr", "2.0.0", VersionState.DRAFT),
        ("drafts", "1.0.0", VersionState.DRAFT),
        ("decided", "1.0.0", VersionState.DRAFT),
    ):
        added = add_package(node.resources, folder, package_files("hospital-a", name, version))
        with node.resources.sessions.begin() as session:
            session.execute(
                update(PackageVersion)
                .where(PackageVersion.id == added.id)
                .values(state=state.value, released_at=now())
            )


# ------------------------------------------------------------------------------------------ things


def _user_id(session: Session, name: str) -> Any:
    user = auth.find_user(session, name)
    assert user is not None
    return user.id


TRAINING: dict[str, Any] = {
    "packages": [],
    "dataset_id": None,
    "epochs": 1,
    "seed": 0,
    "class_map": {},
}


def _job(session: Session, owner: Any, state: State) -> Job:
    job = Job(
        kind=Kind.CHECK.value, state=state.value, title="x", owner_id=owner, attempts=0,
        max_attempts=5, fence=0, spec=TRAINING, error={"slug": "x", "detail": "x", "resumable": True},
    )  # fmt: skip
    session.add(job)
    session.flush()
    return job


def _dataset(session: Session, owner: Any) -> Any:
    dataset = SourceDataset(
        name=f"d-{new_id().hex}", title="x", owner_id=owner, path="/nowhere", rows={}, state="registered",
    )  # fmt: skip
    session.add(dataset)
    session.flush()
    return dataset.id


def _detector(session: Session, owner: Any) -> Any:
    job = _job(session, owner, State.FAILED)
    detector = Detector(name=f"d-{new_id().hex}", owner_id=owner, job_id=job.id, state="training")
    session.add(detector)
    session.flush()
    return detector.id


def _session(session: Session, owner: Any, node: Node) -> Any:
    user = session.get_one(User, owner)
    settings = node.resources.settings.session
    return auth.start_session(session, user, settings, user_agent="", via="password").login.id


def _api_token(session: Session, owner: Any) -> Any:
    session.execute(update(ApiToken).where(ApiToken.user_id == owner).values(revoked_at=now()))
    user = session.get_one(User, owner)
    scopes = frozenset({Scope.JOBS_READ})
    return auth.issue_token(session, SYSTEM, user, name="x", scopes=scopes, days=1)[0].id


def _spare_user(session: Session) -> Any:
    name = f"u{new_id().hex[-12:]}"
    return auth.create_user(session, SYSTEM, username=name, display_name="x", role=Role.AUDITOR).id


def things_of_owner(node: Node, operation_id: str) -> dict[str, str]:
    """Return a value for every path parameter of an operation: things that are there, of the caller `owner`."""
    state = State.QUEUED if operation_id == "jobs_cancel" else State.FAILED
    makers: dict[str, Callable[[Session, Any], Any]] = {
        "dataset_id": _dataset,
        "job_id": lambda session, owner: _job(session, owner, state).id,
        "detector_id": _detector,
        "session_id": lambda session, owner: _session(session, owner, node),
        "token_id": _api_token,
        "user_id": lambda session, _: _spare_user(session),
        "site": lambda *_: "hospital-a",
        "name": lambda *_: "decided" if operation_id in DECIDING else "cxr",
        "version": lambda *_: "1.0.0",
        "path": lambda *_: "manifest.json",
        "label": lambda *_: "COVID",
        "number": lambda *_: "0",
        "kind": lambda *_: "step",
        "slug": lambda *_: "not-found",
    }
    with node.resources.sessions.begin() as session:
        owner = _user_id(session, "owner")
        return {name: str(makers[name](session, owner)) for name in parameters(node, operation_id)}


DECIDING = ("packages_release", "packages_yank")


def parameters(node: Node, operation_id: str) -> list[str]:
    described = node.operations[operation_id][2].get("parameters", [])
    return [one["name"] for one in described if one["in"] == "path"]


def missing(node: Node, operation_id: str) -> dict[str, str]:
    """Return values for the path parameters that no thing has."""
    words = {"site": "nowhere", "name": "nothing", "version": "9.9.9"}
    words |= {"path": "x", "label": "x", "kind": "step", "number": "9", "slug": "x"}
    return {name: words.get(name, MISSING) for name in parameters(node, operation_id)}


# ------------------------------------------------------------------------------------------ what is expected


def expected(rule: Rule, caller: str) -> int | None:
    """Return with what the guard refuses this caller, None where it lets them pass."""
    if caller in ("expired token", "revoked token"):
        return 401
    if not rule.roles:
        return None
    if caller == "anonymous":
        return 401
    role = {**PERSONS, "peer": Role.PEER}.get(caller, Role.ADMIN)
    if role not in rule.roles:
        return 403
    if caller in ("token", "unrelated token"):
        return None if caller == "token" and rule.scope is not Scope.ACCOUNT else 403
    return None


def refusal(answer: Response) -> int | None:
    """Return the status if the caller was refused as such; a login that fails is another matter."""
    if answer.status_code not in (401, 403):
        return None
    if answer.content and answer.json()["type"] not in GUARD:
        return None
    return int(answer.status_code)


def is_others(rule: Rule, caller: str, node: Node, operation_id: str) -> bool:
    """Whether the thing is somebody else's, and the caller not one who decides."""
    return rule.own and bool(parameters(node, operation_id)) and caller in ("other", "auditor")


# ------------------------------------------------------------------------------------------ the matrix


def test_every_operation_has_a_row_and_every_row_an_operation(node: Node) -> None:
    assert set(node.operations) == set(OPERATIONS)


def test_the_table_gives_each_role_what_it_is_for() -> None:
    may = {role: {name for name, rule in OPERATIONS.items() if role in rule.roles} for role in Role}
    everybody = {name for name, rule in OPERATIONS.items() if not rule.roles}
    assert everybody == {
        "system_live", "system_ready", "system_well_known", "system_problem",
        "setup_read", "setup_complete", "sessions_login", "sessions_choose_password",
    }  # fmt: skip
    assert all(name.startswith("packages_") for name in may[Role.PEER])
    assert not may[Role.PEER] & {"packages_import", "packages_release", "packages_yank"}
    own = {name for name in OPERATIONS if name.split("_")[0] in ("sessions", "account", "tokens")}
    kinds = "list read version file head archive events log presets evaluations info metrics"
    for name in may[Role.AUDITOR] - own - {"audit_verify", "audit_export"}:
        assert name.rpartition("_")[2] in kinds, name
    assert not {
        name
        for name in may[Role.AUDITOR]
        if "thumbnail" in name or "picture" in name or "predict" in name
    }
    assert {name for name in OPERATIONS if may[Role.ADMIN].isdisjoint({name})} == everybody
    assert may[Role.STEWARD] - may[Role.RESEARCHER] == {
        "packages_release", "packages_yank", "system_metrics",
    }  # fmt: skip
    assert may[Role.ADMIN] - may[Role.STEWARD] == {
        "users_create", "users_list", "users_read", "users_change", "users_password_link",
        "audit_list", "audit_verify", "audit_export",
    }  # fmt: skip


def test_every_path_parameter_is_known_here(node: Node) -> None:
    for operation_id in node.operations:
        assert set(things_of_owner(node, operation_id)) == set(parameters(node, operation_id))


@pytest.mark.parametrize("operation_id", sorted(OPERATIONS))
def test_each_caller_may_what_the_table_says(node: Node, operation_id: str) -> None:
    rule = OPERATIONS[operation_id]
    for caller in CALLERS:
        answer = node.ask(operation_id, caller, things_of_owner(node, operation_id))
        said = f"{operation_id} by {caller}: {answer.status_code} {answer.text[:200]}"
        want = expected(rule, caller)
        if want is None and is_others(rule, caller, node, operation_id):
            assert answer.status_code in (403, 404), said
        else:
            assert refusal(answer) == want, said
            if want is None and parameters(node, operation_id) and rule.roles:
                assert answer.status_code != 404 or operation_id in _NOTHING_YET, said
        assert answer.status_code < 500 or operation_id == "system_ready", said
        if caller == "owner" and operation_id == "sessions_end":
            assert answer.status_code == 204, said


# Things of `things_of_owner` have no pictures and no files.
_NOTHING_YET = ("datasets_thumbnail", "detectors_download", "jobs_picture")


@pytest.mark.parametrize(
    "operation_id", sorted(name for name in OPERATIONS if name.split("_")[0] not in ("system", "setup"))
)  # fmt: skip
def test_what_is_not_there_is_not_there_for_who_may_and_says_nothing_to_who_may_not(
    node: Node, operation_id: str
) -> None:
    if not parameters(node, operation_id):
        return
    rule = OPERATIONS[operation_id]
    for caller in CALLERS:
        absent = node.ask(operation_id, caller, missing(node, operation_id))
        said = f"{operation_id} by {caller}: {absent.status_code} {absent.text[:200]}"
        want = expected(rule, caller)
        if want is None:
            assert absent.status_code in (404, 422), said  # 422: its body is looked at first
        else:
            assert absent.status_code == want, said
            present = node.ask(operation_id, caller, things_of_owner(node, operation_id))
            assert (present.status_code, present.content[:0]) == (absent.status_code, b""), said
            if present.content:
                assert present.json()["detail"] == absent.json()["detail"], said


READING = (
    "packages_version",
    "packages_file",
    "packages_file_head",
    "packages_archive",
    "packages_archive_head",
)


@pytest.mark.parametrize("operation_id", READING)
def test_a_peer_sees_what_is_released_and_nothing_of_the_rest(
    node: Node, operation_id: str
) -> None:
    def ask(caller: str, **change: str) -> Response:
        things = {**things_of_owner(node, operation_id), **change}
        return node.ask(operation_id, caller, things)

    assert ask("peer").status_code == 200
    assert ask("auditor", version="2.0.0").status_code == 200
    draft, absent = ask("peer", version="2.0.0"), ask("peer", version="9.9.9")
    assert draft.status_code == absent.status_code == 404
    if draft.content:
        assert draft.json()["detail"].replace("2.0.0", "9.9.9") == absent.json()["detail"]


def test_lists_show_a_peer_what_is_released(node: Node) -> None:
    for caller, names in (("peer", {"cxr"}), ("auditor", {"cxr", "drafts", "decided"})):
        answer = node.ask("packages_list", caller, {})
        assert answer.status_code == 200
        assert names <= {row["name"] for row in answer.json()["items"]}
        assert (caller == "peer") == ("drafts" not in answer.text)
    versions = node.ask("packages_read", "peer", {"site": "hospital-a", "name": "cxr"})
    assert versions.status_code == 200
    assert "2.0.0" not in versions.text
    assert (
        node.ask("packages_read", "peer", {"site": "hospital-a", "name": "drafts"}).status_code
        == 404
    )


# ------------------------------------------------------------------------------------------ bodies

SERVER_OWNED = (
    "id", "owner_id", "created_at", "state", "status", "role_id", "site_id", "approved", "password_hash", "is_admin",
    "version_id", "digest", "verdict", "released_by", "fence", "attempts", "sha256",
)  # fmt: skip


def test_no_body_takes_fields_that_the_server_owns(node: Node) -> None:
    """Every object in every JSON body refuses what it does not name, all the way down."""
    schemas = node.client.get(f"{API}/openapi.json").json()["components"]["schemas"]
    checked = 0
    for operation_id, (_, _, operation) in node.operations.items():
        media = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if media is None:
            continue
        for schema in _objects(media["schema"], schemas, set()):
            assert schema.get("additionalProperties") is False, f"{operation_id}: {schema}"
            assert not set(SERVER_OWNED) & set(schema["properties"]), f"{operation_id}: {schema}"
            checked += 1
    assert checked >= 15


def test_fields_that_the_server_owns_are_named_in_the_refusal(node: Node) -> None:
    for operation_id, (method, path, operation) in node.operations.items():
        if "application/json" not in operation.get("requestBody", {}).get("content", {}):
            continue
        answer = node.client.request(
            method,
            path.format_map(things_of_owner(node, operation_id)),
            headers=node.caller_headers(operation_id, "admin"),
            json=dict.fromkeys(SERVER_OWNED, "x"),
        )
        assert answer.status_code == 422, f"{operation_id}: {answer.text}"
        places = {one["where"].rpartition("/")[2] for one in answer.json().get("errors", [])}
        assert set(SERVER_OWNED) <= places or "kind" in answer.text, (
            f"{operation_id}: {answer.text}"
        )


def _objects(
    schema: dict[str, Any], schemas: dict[str, Any], seen: set[str]
) -> Iterator[dict[str, Any]]:
    """Yield the schemas of objects with named fields inside a schema."""
    reference = schema.get("$ref")
    if reference is not None:
        name = reference.rpartition("/")[2]
        if name not in seen:
            seen.add(name)
            yield from _objects(schemas[name], schemas, seen)
        return
    if "properties" in schema:
        yield schema
    inner = list(schema.get("properties", {}).values())
    inner += [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, [])]
    inner += [schema["items"]] if isinstance(schema.get("items"), dict) else []
    for one in inner:
        yield from _objects(one, schemas, seen)

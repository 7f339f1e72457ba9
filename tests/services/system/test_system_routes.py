from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from ppdd_core.package.signature import fingerprint
from services.app import create_app
from services.jobs import workers
from services.kit.openapi import REFERENCE
from services.kit.problems import MEDIA_TYPE
from services.kit.resources import Resources, open_resources
from services.settings import Settings, load_settings
from tests.services.conftest import Bell, Login

READY = "/api/v1/system/ready"
INFO = "/api/v1/system/info"
METRICS = "/api/v1/system/metrics"


def add_worker(resources: Resources) -> None:
    with resources.sessions.begin() as session:
        workers.note_worker(session, "worker@here", device="cpu", version="1", free_disk_bytes=5)


def test_a_living_process_says_so(client: TestClient) -> None:
    answer = client.get("/api/v1/system/live")
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_ready_names_the_parts_and_nobody_unknown_learns_their_faults(
    client: TestClient, login: Login
) -> None:
    answer = client.get(READY)
    assert answer.status_code == 200
    parts = answer.json()["parts"]
    assert {name: part["ok"] for name, part in parts.items()} == {
        "database": True,
        "store": True,
        "broker": True,
        "worker": False,
    }
    assert all(part["fault"] is None for part in parts.values())
    known = client.get(READY, headers=login("auditor")).json()["parts"]
    assert "no worker was heard of for 60 seconds" in known["worker"]["fault"]


def test_ready_with_a_worker_has_no_fault(resources: Resources, client: TestClient) -> None:
    add_worker(resources)
    answer = client.get(READY).json()
    assert answer["ready"]
    assert all(part["ok"] for part in answer["parts"].values())


def test_without_its_store_the_node_is_not_ready(
    resources: Resources, client: TestClient, login: Login
) -> None:
    (resources.settings.data_dir / "objects").write_text("in the way")
    answer = client.get(READY, headers=login("admin"))
    assert answer.status_code == 503
    assert answer.json()["parts"]["store"]["fault"]
    assert str(resources.settings.data_dir) not in answer.text


def test_without_its_database_the_node_lives_and_is_not_ready(tmp_path: Path, bell: Bell) -> None:
    settings = load_settings(
        {},
        data_dir=tmp_path,
        database={"url": "postgresql+psycopg://nobody@127.0.0.1:1/none"},
    )
    with (
        open_resources(settings, send=bell) as away,
        TestClient(create_app(away), raise_server_exceptions=False) as client,
    ):
        answer = client.get(READY)
        assert answer.status_code == 503
        assert not answer.json()["parts"]["database"]["ok"]
        assert client.get("/api/v1/system/live").status_code == 200
        assert client.get("/.well-known/ppdd.json").status_code == 200
        refused = client.get(INFO, headers={"Authorization": "Bearer ppdd_x"})
        assert refused.status_code == 503
        assert refused.json()["type"] == "/problems/database-unavailable"


def test_info_tells_what_runs_and_what_is_there(
    resources: Resources, client: TestClient, login: Login
) -> None:
    add_worker(resources)
    answer = client.get(INFO, headers=login("researcher"))
    assert answer.status_code == 200
    told = answer.json()
    assert told["site"] == {
        "id": "hospital-a",
        "name": "Hospital A",
        "key": fingerprint(resources.key),
    }
    assert [worker["name"] for worker in told["workers"]] == ["worker@here"]
    assert "distill" in told["capabilities"]["jobs"]
    assert told["jobs"] == {}


def test_metrics_are_readable_for_prometheus(client: TestClient, login: Login) -> None:
    headers = login("auditor")
    client.get("/api/v1/system/live")
    answer = client.get(METRICS, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert families["ppdd_audit_events"].samples[0].value > 0
    assert families["ppdd_workers_living"].samples[0].value == 0
    assert families["ppdd_disk_free_bytes"].samples[0].value > 0
    counted = {sample.labels.get("operation") for sample in families["ppdd_requests"].samples}
    assert "system_live" in counted


@pytest.mark.parametrize("path", [INFO, METRICS])
def test_the_inside_is_for_those_who_may(client: TestClient, login: Login, path: str) -> None:
    assert client.get(path).status_code == 401
    assert client.get(path, headers=login("peer")).status_code == 403


def test_other_hospitals_learn_who_this_is(resources: Resources, client: TestClient) -> None:
    told = client.get("/.well-known/ppdd.json").json()
    assert told["site_id"] == "hospital-a"
    assert told["key"] == fingerprint(resources.key)
    assert told["api"] == ["/api/v1"]


def test_a_problem_has_a_page_for_people_and_for_programs(client: TestClient) -> None:
    told = client.get("/api/v1/system/nothing")
    assert told.headers["Content-Type"] == MEDIA_TYPE
    address = told.json()["type"]
    page = client.get(address)
    assert page.headers["Content-Type"].startswith("text/markdown")
    assert page.text.startswith("# There is no such thing\n")
    same = client.get(address, headers={"Accept": "application/json"}).json()
    assert (same["slug"], same["status"]) == ("not-found", 404)
    assert client.get("/problems/no-such-slug").status_code == 404


def test_answers_tell_browsers_to_guess_load_and_keep_nothing(client: TestClient) -> None:
    for path in (READY, INFO, "/nowhere"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "Strict-Transport-Security" not in headers


def test_over_tls_browsers_are_told_to_stay_there(settings: Settings, bell: Bell) -> None:
    tls = settings.model_copy(update={"public_url": "https://node.example"})
    with open_resources(tls, send=bell) as made:
        headers = TestClient(create_app(made)).get("/api/v1/system/live").headers
    assert headers["Strict-Transport-Security"].startswith("max-age=")


def test_the_description_is_complete(client: TestClient) -> None:
    schema = client.get("/api/v1/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"token", "session"}
    assert "HTTPValidationError" not in json.dumps(schema)
    described = {tag["name"] for tag in schema["tags"]}
    silent = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            if not operation.get("summary") or not operation.get("description"):
                silent.append(f"{where} has no summary or docstring")
            if not set(operation["tags"]) <= described:
                silent.append(f"{where}: no description of {operation['tags']}")
            for status, response in operation["responses"].items():
                if status >= "400" and MEDIA_TYPE in response.get("content", {}):
                    found = response["content"][MEDIA_TYPE]["schema"]
                    if found != REFERENCE:
                        silent.append(f"{where} {status} has another shape")
    assert silent == []


def test_the_description_says_which_operations_anybody_may_call(client: TestClient) -> None:
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert {} in paths["/api/v1/system/live"]["get"]["security"]
    assert {} not in paths[INFO]["get"]["security"]
    assert "401" in paths[INFO]["get"]["responses"]


def test_a_read_only_probe_writes_at_most_once_in_a_while(
    resources: Resources, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = []
    monkeypatch.setattr(type(resources.store), "check", lambda _: checks.append(1))
    for _ in range(20):
        client.get(READY)
    assert len(checks) == 1


def test_metrics_count_jobs_without_naming_anything(
    resources: Resources, client: TestClient, login: Login
) -> None:
    headers = login("admin")
    with resources.sessions.begin() as session:
        owner = session.execute(text("SELECT id FROM users")).scalar_one()
        session.execute(
            text(
                "INSERT INTO jobs (id, created_at, kind, state, title, owner_id, spec, attempts, max_attempts, fence)"
                " VALUES ('1', '2026-01-01 00:00:00', 'check', 'queued', 'secret title', :owner, '{}', 0, 5, 0)"
            ),
            {"owner": owner},
        )
    told = client.get(METRICS, headers=headers).text
    assert 'ppdd_jobs{kind="check",state="queued"} 1.0' in told
    assert "secret title" not in told

"""docker-compose.yml and the Dockerfiles: valid, and hardened as the guide for hospital IT promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {
    "api",
    "migrate",
    "courier",
    "worker-cpu",
    "worker-gpu",
}  # images whose Dockerfile ends as a user
DOCKERFILES = ("deploy/Dockerfile", "deploy/object-store/Dockerfile")


def faults(name: str, service: dict[str, Any]) -> list[str]:
    """Return what a service does that none may."""
    wrong = []
    if not service.get("read_only"):
        wrong.append("its root file system can be written")
    if service.get("cap_drop") != ["ALL"] or service.get("cap_add"):
        wrong.append("it has capabilities")
    if "no-new-privileges:true" not in service.get("security_opt", []):
        wrong.append("it may gain privileges")
    if service.get("privileged") or service.get("network_mode") or service.get("pid"):
        wrong.append("it shares something with the host")
    if service.get("ports") and name != "proxy":
        wrong.append("it is published")
    if not service.get("mem_limit") or not service.get("pids_limit"):
        wrong.append("it has no limits")
    if not service.get("logging", {}).get("options", {}).get("max-size"):
        wrong.append("its log grows without end")
    if "healthcheck" not in service and name != "migrate":
        wrong.append("nobody knows whether it is healthy")
    if any("docker.sock" in str(volume) for volume in service.get("volumes", [])):
        wrong.append("it holds the engine's socket")
    secrets = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|TOKEN")
    environment = service.get("environment", {})
    wrong += [
        f"{key} is a secret in the open"
        for key in environment
        if secrets.search(key) and not key.endswith("_FILE")
    ]
    return wrong


def test_the_file_follows_the_compose_specification() -> None:
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        "docker-compose.yml",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES)
def test_dockerfiles_pass_hadolint(path: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_hardened(name: str) -> None:
    assert faults(name, SERVICES[name]) == []


@pytest.mark.parametrize(
    "change",
    [
        {"read_only": False},
        {"cap_add": ["SYS_ADMIN"]},
        {"privileged": True},
        {"ports": ["9000:9000"]},
        {"volumes": ["/var/run/docker.sock:/var/run/docker.sock"]},
        {"environment": {"POSTGRES_PASSWORD": "x"}},
        {"mem_limit": None},
    ],
)
def test_the_policy_notices(change: dict[str, Any]) -> None:
    assert faults("postgres", {**SERVICES["postgres"], **change})


def test_nothing_runs_as_root() -> None:
    for path in DOCKERFILES:
        users = re.findall(r"^USER (\S+)", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
        assert users and users[-1].partition(":")[0] not in ("0", "root"), path
    unnamed = [
        name
        for name, service in SERVICES.items()
        if name not in OURS
        and "build" not in service
        and "user" not in service
        and "unprivileged" not in service["image"]
    ]
    assert unnamed == []


def test_images_of_others_are_pinned_and_kept_up() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    images = re.findall(r"_IMAGE:-([^}]+)}", text)
    assert len(images) >= 4
    for image in images:
        _, _, tag = image.rpartition(":")
        assert tag and tag != "latest" and "/" not in tag, image
        assert "minio/minio" not in image, "no longer published"


def test_what_holds_images_cannot_reach_the_internet() -> None:
    assert COMPOSE["networks"]["back"]["internal"] is True
    for name, service in SERVICES.items():
        holds_images = any("/images" in str(volume) for volume in service.get("volumes", []))
        if holds_images:
            assert "out" not in service["networks"], name
    assert SERVICES["worker-cpu"]["networks"] == SERVICES["worker-gpu"]["networks"] == ["back"]


def test_real_images_are_mounted_for_reading_only() -> None:
    mounts = [
        str(v)
        for service in SERVICES.values()
        for v in service.get("volumes", [])
        if ":/images" in str(v)
    ]
    assert mounts and all(mount.endswith(":ro") for mount in mounts)


def test_every_setting_in_the_file_is_one() -> None:
    from services.settings import setting_names

    for name in OURS:
        for variable in SERVICES[name]["environment"]:
            assert {variable, variable.removesuffix("_FILE")} & set(setting_names()), variable

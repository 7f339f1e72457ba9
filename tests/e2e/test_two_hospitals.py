"""The whole story in real processes: A distils, loses a process, releases; B pulls, verifies, trains, measures."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ppdd_core.data.phantom import CLASSES, write_phantoms
from ppdd_core.package.verify import verify_package
from services.cli.demo import FROM_NEIGHBOUR
from services.cli.hospitals import Hospital, run_hospital

PLACE = "/packages/hospital-a/chest/versions/1.0.0"
TOY = {
    "image_size": 16, "net.width": 8, "net.depth": 2,
    "teacher.teachers": 2, "teacher.epochs": 5, "teacher.epoch_images": 160,
    "distill.iterations": 40, "distill.student_steps": 3, "distill.max_start_epoch": 3,
    "detector.epochs": 3, "detector.seeds": 1, "privacy.members": 20,
    "evaluation.full_epochs": 1, "evaluation.full_epoch_images": 64,
}  # fmt: skip


@pytest.mark.e2e
def test_a_package_travels_from_one_hospital_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    for site, images in (("a", 160), ("b", 80)):
        write_phantoms(
            tmp_path / site / "drawn", images=images, image_size=32, seed=1, site=site,
            proportions=dict.fromkeys(CLASSES, 1.0),
        )  # fmt: skip
    with (
        run_hospital(
            tmp_path / "A", site="hospital-a", title="A", data_root=tmp_path / "a", settings={}
        ) as a,
        run_hospital(
            tmp_path / "B",
            site="hospital-b",
            title="B",
            data_root=tmp_path / "b",
            settings=FROM_NEIGHBOUR,
        ) as b,
    ):
        distil(a, tmp_path / "a" / "drawn")
        release(a)
        pull(a, b)
        package = tmp_path / "pulled.zip"
        b.node.download(f"{PLACE}/archive", package)
        assert verify_package(package, trusted_key=a.key).trusted
        measured = train_and_measure(b, tmp_path / "b" / "drawn")
        assert measured["images"] == 80
        assert {one["class"] for one in measured["per_class"]} == set(CLASSES)


def distil(at: Hospital, images: Path) -> None:
    at.node.post("/datasets", {"name": "chest", "path": str(images)})
    body = {
        "kind": "distill", "dataset": "chest", "preset": "quick", "images_per_class": 1, "settings": TOY,
        "package": {"name": "chest", "version": "1.0.0", "licence": "CC0-1.0", "purposes": ["DUO:0000042"]},
    }  # fmt: skip
    job_id = at.node.post("/jobs", body)["id"]
    killed = kill_the_process_of(job_id, at)
    job = ended(at, job_id)
    assert [one["outcome"] for one in job["history"]][-1] == "succeeded"
    assert not killed or len(job["history"]) > 1


def kill_the_process_of(job_id: str, at: Hospital) -> bool:
    """Kill the process that works on a job as soon as it is there; False where the job was quicker."""
    while at.node.get(f"/jobs/{job_id}")["state"] in ("queued", "running"):
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = process.read_bytes().split(b"\0")
            except OSError:
                continue
            if b"worker.run" in words and job_id.encode() in words:
                os.kill(int(process.parent.name), signal.SIGKILL)
                return True
        time.sleep(0.05)
    return False


def release(at: Hospital) -> None:
    version = at.node.get(PLACE)
    assert version["state"] == "draft"
    reason = (
        {}
        if version["verdict"] == "passed"
        else {"override_reason": "drawn images: nobody is behind them"}
    )
    assert at.node.post(f"{PLACE}/release", reason)["state"] == "released"


def pull(a: Hospital, b: Hospital) -> None:
    a.node.post("/users", {"username": "hospital-b", "display_name": "Hospital B", "role": "peer"})
    token = a.node.post(
        "/tokens", {"name": "b", "scopes": ["packages:read"], "days": 1, "username": "hospital-b"}
    )["token"]
    asked = {"url": a.url, "package": "hospital-a/chest@1.0.0", "token": token}
    wrong = ended(b, b.node.post("/pulls", {**asked, "key": "0" * 64})["id"], "failed")
    assert "key" in wrong["error"]["detail"]
    ended(b, b.node.post("/pulls", {**asked, "key": a.key})["id"])
    assert b.node.get(PLACE)["state"] == "held"


def train_and_measure(at: Hospital, images: Path) -> dict[str, Any]:
    detector = at.node.post(
        "/detectors", {"name": "from-a", "packages": ["hospital-a/chest@1.0.0"], "epochs": 3}
    )
    ended(at, detector["job_id"])
    at.node.post("/datasets", {"name": "own", "path": str(images)})
    place = f"/detectors/{detector['id']}"
    ended(at, at.node.post(f"{place}/evaluations", {"dataset": "own", "split": "all"})["job_id"])
    with next(images.rglob("*.png")).open("rb") as image:
        answer = at.node.send(
            f"{place}/predictions", image, media_type="image/png", headers={"Prefer": "wait=50"}
        )
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert answer["use"].startswith("Research use only")
    found: dict[str, Any] = at.node.get(f"{place}/evaluations")["items"][0]
    return found


def ended(at: Hospital, job_id: str, state: str = "succeeded") -> dict[str, Any]:
    for _ in at.node.follow(job_id):
        pass
    job: dict[str, Any] = at.node.get(f"/jobs/{job_id}")
    assert job["state"] == state, job["error"]
    return job

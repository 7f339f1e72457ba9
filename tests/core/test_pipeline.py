"""The whole flow, at toy size: from drawn X-rays to a verified package, and after every kind of interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ppdd_core.data.phantom import CLASSES, write_phantoms
from ppdd_core.errors import BadConfigError, CheckpointError, Interrupted
from ppdd_core.package.build import Usage
from ppdd_core.package.load import load_package
from ppdd_core.package.signature import fingerprint, load_or_create_key
from ppdd_core.package.verify import verify_package
from ppdd_core.pipeline import (
    Identity,
    Result,
    Source,
    StageProgress,
    distill_package,
    load_split,
)
from ppdd_core.presets import preset

TOY = {
    "image_size": 16,
    "net.width": 4,
    "net.depth": 2,
    "teacher.teachers": 2,
    "teacher.epochs": 4,
    "teacher.lr": 0.05,
    "teacher.epoch_images": 160,
    "distill.iterations": 25,
    "distill.student_steps": 2,
    "distill.max_start_epoch": 3,
    "detector.epochs": 4,
    "detector.seeds": 1,
    "evaluation.full_epochs": 1,
    "evaluation.full_epoch_images": 64,
    "privacy.members": 20,
}
MOMENT = "2026-01-02T03:04:05Z"
SHORT = {"distill.iterations": 2}


@dataclass(frozen=True)
class Finished:
    """A run that came to its end undisturbed. What a test changes is a copy of its folder."""

    folder: Path
    result: Result
    heard: list[StageProgress]

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.folder, to))

    def with_its_teachers(self, to: Path) -> Path:
        """Return the folder of a run that only its teachers were trained for."""
        shutil.copytree(self.folder / "teachers", to / "teachers")
        return to


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "images"
    write_phantoms(
        folder, images=300, image_size=32, seed=0, proportions=dict.fromkeys(CLASSES, 1.0)
    )
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def whole(images: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder, heard = tmp_path_factory.mktemp("whole") / "run", list[StageProgress]()
    return Finished(folder, run(images, home, folder, on_progress=heard.append), heard)


@pytest.fixture(scope="module")
def short(
    whole: Finished, images: Path, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A run of two iterations with the teachers of `whole`."""
    folder = whole.with_its_teachers(tmp_path_factory.mktemp("short") / "run")
    return Finished(folder, run(images, home, folder, settings=SHORT), [])


def run(
    images: Path, home: Path, out: Path, *, on_progress: Callable[[StageProgress], None] = lambda _: None,
    settings: Mapping[str, str | float] | None = None, version: str = "0.1.0", licence: str = "none",
) -> Result:  # fmt: skip
    key = load_or_create_key(home / "keys/site.pem")
    return distill_package(
        Source(path=images),
        out,
        preset("quick", 1).override({**TOY, **(settings or {})}),
        Identity(
            name="toy/set",
            version=version,
            site_id="toy",
            site_name="Toy",
            usage=Usage(licence=licence, purposes=("DUO:0000006",)),
            key=key,
            created=MOMENT,
        ),
        device=torch.device("cpu"),
        cache_dir=home / "cache",
        processes=1,
        on_progress=on_progress,
    )


def test_a_run_ends_in_a_package_that_verifies_and_loads(whole: Finished, home: Path) -> None:
    result, heard = whole.result, whole.heard
    key = fingerprint(load_or_create_key(home / "keys/site.pem"))
    for place in (result.folder, result.archive):
        assert verify_package(place, trusted_key=key).ok
    package = load_package(result.archive, trusted_key=key)
    assert package.images.shape == (4, 1, 16, 16)
    assert package.classes == tuple(sorted(CLASSES))
    assert {entry["method"] for entry in result.evaluation["results"]} >= {
        "distilled",
        "random_real",
    }
    assert result.manifest.created == MOMENT
    assert list(dict.fromkeys(p.stage for p in heard)) == [
        "images", "teachers", "distillation", "evaluation", "privacy", "package",
    ]  # fmt: skip
    steps = [p.distillation for p in heard if p.distillation]
    assert [s.step for s in steps] == list(range(1, 26))
    history = [
        json.loads(line)
        for line in (whole.folder / "distill/history.jsonl").read_text().splitlines()
    ]
    assert [h["step"] for h in history] == list(range(1, 26))


def test_a_class_too_small_to_count_is_counted_nowhere(
    whole: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    folder = whole.with_its_teachers(tmp_path / "run")
    result = run(images, home, folder, settings={**SHORT, "privacy.min_class_size": 1000})
    assert result.evaluation["suppressed_classes"] == sorted(CLASSES)
    assert set(result.manifest.source["classes"].values()) == {None}
    assert verify_package(result.archive).ok


def test_a_set_is_evaluated_on_other_networks_where_asked(
    images: Path, home: Path, tmp_path: Path
) -> None:
    settings: dict[str, str | float] = {
        "image_size": 32,
        "evaluation.architectures": "alexnet",
        "distill.iterations": 2,
        "evaluation.step_sizes": "0.01",
        "detector.epochs": 1,
    }
    result = run(images, home, tmp_path / "run", settings=settings)
    rows = {(row["method"], row["architecture"]) for row in result.evaluation["summary"]}
    assert {("distilled", "alexnet"), ("random_real", "alexnet"), ("distilled", "convnet")} <= rows
    assert verify_package(result.archive).ok


def test_sigma_zero_is_reported_as_mtt(
    whole: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    folder = whole.with_its_teachers(tmp_path / "run")
    result = run(images, home, folder, settings={**SHORT, "distill.prune_below": 0.0})
    assert "mtt_unpruned" in {entry["method"] for entry in result.evaluation["results"]}


def test_soft_labels_travel_with_their_images(
    whole: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    folder = whole.with_its_teachers(tmp_path / "run")
    settings: dict[str, str | float] = {
        **SHORT,
        "distill.labels": "soft",
        "distill.init": "mean",
        "distill.mean_of": 3,
    }
    result = run(images, home, folder, settings=settings)
    assert verify_package(result.archive).ok
    assert result.manifest.label_kind == "soft"
    labels_IK = load_package(result.archive).labels
    torch.testing.assert_close(labels_IK.sum(1), torch.ones(4))
    assert labels_IK.argmax(1).tolist() == [0, 1, 2, 3]
    assert float(labels_IK.max()) < 0.99


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_bytes(
    whole: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    def stop_at(stage: str, done: int) -> Callable[[StageProgress], None]:
        def hear(progress: StageProgress) -> None:
            if progress.stage == stage and progress.done >= done:
                raise KeyboardInterrupt

        return hear

    for stage, done in (("teachers", 1), ("distillation", 13), ("evaluation", 1), ("privacy", 1)):
        with pytest.raises(Interrupted, match="same command"):
            run(images, home, tmp_path / "stopped", on_progress=stop_at(stage, done))
    resumed = run(images, home, tmp_path / "stopped")
    assert resumed.archive.read_bytes() == whole.result.archive.read_bytes()


def test_two_runs_do_not_share_a_folder(images: Path, home: Path, tmp_path: Path) -> None:
    def second(progress: StageProgress) -> None:
        if progress.stage == "images":
            with pytest.raises(CheckpointError, match="another process works"):
                run(images, home, tmp_path / "run")
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(images, home, tmp_path / "run", on_progress=second)
    (tmp_path / "file").touch()
    with pytest.raises(BadConfigError, match="must be a folder"):
        run(images, home, tmp_path / "file")


def test_reports_are_those_of_the_images_they_travel_with(
    short: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    folder = short.copy(tmp_path / "run")
    again = run(images, home, folder, settings=SHORT)
    assert (again.evaluation, again.privacy) == (short.result.evaluation, short.result.privacy)
    for name in ("evaluation", "privacy"):
        file = folder / f"{name}.json"
        of_others = json.loads(file.read_bytes()) | {"of": "0" * 64, "report": {"made": "up"}}
        file.write_text(json.dumps(of_others))
    assert run(images, home, folder, settings=SHORT) == again


@pytest.mark.parametrize("file", ["evaluation.json", "privacy.json", "run.json"])
def test_a_damaged_file_of_a_run_is_named(
    short: Finished, images: Path, home: Path, tmp_path: Path, file: str
) -> None:
    folder = short.copy(tmp_path / "run")
    (folder / file).write_bytes(b"[]")
    with pytest.raises(CheckpointError, match=rf"{file} is damaged; delete it"):
        run(images, home, folder, settings=SHORT)


def test_a_damaged_history_stops_nothing(
    short: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    folder = short.copy(tmp_path / "run")
    (folder / "distill/history.jsonl").write_text('{"step": 1}\n{"st')
    again = run(images, home, folder, settings=SHORT)
    assert again.archive.read_bytes() == short.result.archive.read_bytes()
    assert (again.evaluation, again.privacy) == (short.result.evaluation, short.result.privacy)


def test_other_terms_are_refused_at_once_and_cost_no_new_run(
    short: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    folder = short.copy(tmp_path / "run")
    heard: list[StageProgress] = []
    with pytest.raises(CheckpointError, match="another version, terms; delete that folder"):
        run(
            images,
            home,
            folder,
            settings=SHORT,
            version="0.2.0",
            licence="MIT",
            on_progress=heard.append,
        )
    assert heard == []
    shutil.rmtree(folder / "package")
    result = run(
        images,
        home,
        folder,
        settings=SHORT,
        version="0.2.0",
        licence="MIT",
        on_progress=heard.append,
    )
    assert {p.stage for p in heard} <= {"images", "package"}
    assert (result.manifest.version, result.manifest.usage.licence) == ("0.2.0", "MIT")


def test_too_few_real_images_to_start_from_are_refused_before_any_teacher(
    images: Path, home: Path, tmp_path: Path
) -> None:
    settings: dict[str, str | float] = {"distill.init": "real", "distill.images_per_class": 200}
    with pytest.raises(BadConfigError, match="needs 200 images of COVID"):
        run(images, home, tmp_path / "run", settings=settings)
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_copies_of_trained_images_are_no_test_images(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_phantoms(
        folder, images=80, image_size=32, seed=0, proportions=dict.fromkeys(CLASSES, 1.0)
    )
    head, *rows = (folder / "manifest.csv").read_text().splitlines()
    parts = [row.split(",") for row in rows]
    own = [f"{path},{label},{patient},a," for path, label, patient, _, _ in parts]
    copied = []
    for path, label, patient, _, _ in parts:
        copy = Path(path).with_stem(Path(path).stem + "-copy")
        shutil.copy(folder / path, folder / copy)
        copied.append(f"{copy},{label},other-{patient},b,")
    (folder / "manifest.csv").write_text("\n".join([head, *own, *copied]) + "\n")
    source = Source(path=folder, where={"hospital": "a"}, test_where={"hospital": "b"})
    with pytest.raises(BadConfigError, match="copies of images"):
        load_split(source, preset("quick", 1).override(TOY), cache_dir=home / "cache")


def test_a_folder_of_another_recipe_is_refused(
    short: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="other recipe"):
        run(images, home, short.copy(tmp_path / "run"), settings={"distill.iterations": 3})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "other/set", "name begins with 'other'"),
        ("name", "Toy Set", "site/name"),
        ("version", "1.0", "semantic version"),
        ("created", "yesterday", "UTC time"),
        ("usage", Usage(licence="none", purposes=("DUO:1",)), "known codes"),
    ],
)
def test_what_the_manifest_would_refuse_is_refused_before_the_work(
    home: Path, field: str, value: object, said: str
) -> None:
    good: dict[str, Any] = {
        "name": "toy/set",
        "version": "0.1.0",
        "site_id": "toy",
        "site_name": "Toy",
        "usage": Usage(licence="none", purposes=("DUO:0000006",)),
        "key": load_or_create_key(home / "keys/site.pem"),
    }
    Identity(**good)
    with pytest.raises(BadConfigError, match=said):
        Identity(**good | {field: value})


def test_test_rows_of_trained_patients_are_refused(
    images: Path, home: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadConfigError, match="trained on"):
        distill_package(
            Source(path=images, where={"hospital": "a"}, test_where={"hospital": "a"}),
            tmp_path / "run",
            preset("quick", 1).override(TOY),
            Identity(
                name="toy/set", version="0.1.0", site_id="toy", site_name="Toy",
                usage=Usage(licence="none", purposes=("DUO:0000006",)), key=load_or_create_key(home / "keys/site.pem"),
            ),
            device=torch.device("cpu"),
            cache_dir=home / "cache",
        )  # fmt: skip


# ------------------------------------------------------------------------------------- kill -9


def start(images: Path, home: Path, out: Path) -> subprocess.Popen[str]:
    """Start `ppdd distill` as a program, so that it can be killed."""
    settings = [f"--set={name}={value}" for name, value in TOY.items()]
    environment = {**os.environ, "PPDD_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-c", "from ppdd_core.cli.main import main; main()", "distill", str(images),
        "--out", str(out), "--ipc", "1", "--site", "toy", "--site-name", "Toy", "--name", "set",
        "--licence", "none", "--created", MOMENT, "--processes", "1", *settings,
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Return as soon as `reached()` holds; the program must not end before."""
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


def test_kill_9_in_every_stage_and_resume_gives_the_same_package(
    whole: Finished, images: Path, home: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    stages: list[Callable[[], bool]] = [
        (killed / "teachers/001/epoch-001.safetensors").exists,
        (killed / "distill/state.safetensors").exists,
        (killed / "evaluation.json").exists,
        (killed / "privacy.json").exists,
    ]
    for reached in stages:
        process = start(images, home, killed)
        wait_for(process, reached)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    _, errors = (resumed := start(images, home, killed)).communicate()
    assert resumed.returncode == 0, errors
    assert (killed / "set-0.1.0.zip").read_bytes() == whole.result.archive.read_bytes()
    assert not [file for file in (killed / "package").iterdir() if file.name.startswith(".")]

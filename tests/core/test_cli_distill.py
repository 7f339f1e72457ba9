"""`ppdd distill`, `teachers train`, `estimate`, `presets` at the keyboard: options, output, exit codes."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdd_core.cli import distill as commands
from ppdd_core.cli.console import parse_pairs
from ppdd_core.cli.picture import half_blocks, side_by_side
from ppdd_core.data.phantom import CLASSES, write_phantoms
from ppdd_core.errors import BadConfigError, PpddError
from tests.program import ppdd

TOY = [
    "image_size=16", "net.width=4", "net.depth=2", "teacher.teachers=1", "teacher.epochs=5", "teacher.lr=0.05",
    "teacher.epoch_images=160", "distill.iterations=3", "distill.student_steps=2", "detector.epochs=2",
    "detector.seeds=1", "evaluation.full_epochs=1", "evaluation.full_epoch_images=32", "privacy.members=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantoms") / "X-rays of A"
    write_phantoms(
        folder, images=240, image_size=32, seed=0, proportions=dict.fromkeys(CLASSES, 1.0)
    )
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def toy() -> list[str]:
    return [f"--set={setting}" for setting in TOY]


def test_distill_prints_one_json_document_and_leaves_a_package(
    images: Path, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    code = ppdd("distill", images, "--out", out, "--ipc", 1, "--site", "st-olaf", "--json", *toy())
    printed = capsys.readouterr()
    assert code == 0, printed.err
    value: dict[str, Any] = json.loads(printed.out)
    assert value["package"] == "st-olaf/x-rays-of-a"
    assert Path(value["archive"]).is_file()
    assert {row["method"] for row in value["evaluation"]} == {
        "distilled",
        "random_real",
        "full_data",
    }
    verdict = value["privacy"]["verdict"]
    assert verdict in ("passed", "failed")
    assert ("warning: the privacy verdict is failed" in printed.err) == (verdict == "failed")
    assert (home / "keys" / "site.pem").stat().st_mode & 0o077 == 0

    assert ppdd("distill", images, "--out", out, "--ipc", 1, "--site", "st-olaf", *toy()) == 0
    shown = capsys.readouterr().out  # again: nothing is done twice, people see a table
    assert "random real images" in shown
    assert "privacy report:" in shown
    assert "contact-sheet.png" in shown


def test_teachers_are_trained_once_and_shared(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teachers = tmp_path / "teachers"
    assert ppdd("teachers", "train", images, "--out", teachers, *toy()) == 0
    assert "1 teachers of" in capsys.readouterr().out
    before = {file: file.stat().st_mtime_ns for file in teachers.rglob("*.safetensors")}
    code = ppdd(
        "distill", images, "--out", tmp_path / "run", "--ipc", 1, "--trajectories", teachers, *toy(),
        "--set=distill.max_start_epoch=3",
    )  # fmt: skip
    assert code == 0
    assert {file: file.stat().st_mtime_ns for file in teachers.rglob("*.safetensors")} == before
    assert ppdd("teachers", "train", images, "--out", teachers, *toy(), "--seed", 1) == 1
    assert "teachers of other images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "huge"], "no preset 'huge'"),
        (["--set", "distill.iterations"], "NAME=VALUE"),
        (["--set", "seed=1", "--set", "seed=2"], "--set names 'seed' twice"),
        (["--where", "hospital=a", "--where", "hospital=b"], "--where names 'hospital' twice"),
        (["--test-where", "hospital"], "--test-where 'hospital': write it as COLUMN=VALUE"),
        (["--set", "distill.speed=3"], "no recipe field 'distill.speed'"),
        (["--iterations", "0"], "distill.iterations must be at least 1"),
        (["--sigma", "1.5"], "distill.prune_below must be in [0, 1)"),
        (["--similarity", "cosine"], "signed_ratio"),
        (["--teacher-epochs", "2"], "teacher.epochs must be at least"),
        (["--name", "other/set", "--site", "mine"], "--name other/set is of site 'other'"),
        (["--version", "one"], "semantic version"),
        (["--device", "tpu"], "auto, cpu or cuda"),
    ],
)
def test_wrong_usage_is_code_2_and_says_what(
    images: Path,
    tmp_path: Path,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ppdd("distill", images, "--out", tmp_path / "run", "--ipc", 1, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_estimate_says_time_memory_and_sizes(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--teachers",
        2,
        "--teacher-epochs",
        12,
        "--iterations",
        4,
        "--sigma",
        0.2,
        "--seed",
        3,
    ]
    options += ["--similarity", "ratio", "--init", "mean", "--processes", 1]
    assert ppdd("estimate", images, "--ipc", 1, "--json", *toy()[:3], *options) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["total_seconds"] > 0
    assert {"seconds", "peak_bytes", "disk_bytes", "package_bytes"} <= {*value}


def test_presets_lists_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert ppdd("presets", "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["paper"]["distill.prune_below"] == 0.1
    assert ppdd("presets") == 0
    table = capsys.readouterr().out
    assert "…" not in table
    assert all(f" {field} " in table for field in value["paper"])


def test_estimate_refuses_images_that_distill_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_phantoms(tmp_path / "few", images=12, image_size=32, seed=0)
    distilled = ppdd("distill", tmp_path / "few", "--out", tmp_path / "run", "--ipc", 1, *toy())
    said = capsys.readouterr().err
    assert distilled == ppdd("estimate", tmp_path / "few", "--ipc", 1, *toy()) == 1
    assert "cannot be used as it is" in said
    assert "cannot be used as it is" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("site", "name", "expected"),
    [
        ("local", "set", ("local", "set")),
        ("local", "a/set", ("a", "set")),
        ("a", "a/set", ("a", "set")),
    ],
)
def test_a_name_may_bring_its_site(site: str, name: str, expected: tuple[str, str]) -> None:
    assert commands._site_and_name(site, name) == expected


def test_pairs_may_hold_equals_signs_in_the_value_and_spaces_around() -> None:
    assert parse_pairs("--set", ["note=a=b", " site = a b "]) == {"note": "a=b", "site": "a b"}
    with pytest.raises(BadConfigError, match="--set"):
        parse_pairs("--set", ["=b"])
    with pytest.raises(BadConfigError, match="--set names 'note' twice"):
        parse_pairs("--set", ["note=a", "note =b"])


@pytest.mark.parametrize("name", ["out/a.png", None])
def test_a_full_disk_says_where_and_that_the_command_goes_on(name: str | None) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", name)
    with (
        pytest.raises(PpddError, match="same command again") as refusal,
        commands.resumes_when_there_is_room(Path("out")),
    ):
        raise full
    assert (name or "writing to out") in str(refusal.value)
    with pytest.raises(OSError, match="denied"), commands.resumes_when_there_is_room(Path("out")):
        raise OSError(errno.EACCES, "denied")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (89.0, "89 s"), (600.0, "10 min"), (12_000.0, "3 h 20 min")]
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert commands.duration(seconds) == text


def test_pictures_are_two_pixels_a_character() -> None:
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    text = half_blocks(grey)
    assert text.plain == "▀▀▀▀▀▀\n▀▀▀▀▀▀\n"
    assert side_by_side([grey, grey]).shape == (4, 13)

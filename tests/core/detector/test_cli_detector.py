"""`ppdd detector` from a signed package to probabilities, as a person and as a program uses it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from typer.testing import CliRunner

from ppdd_core.cli.detector import app
from ppdd_core.config import DetectorConfig, DistillConfig, Recipe
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet
from ppdd_core.detector.evaluate import evaluate_sets
from ppdd_core.errors import BadConfigError, SignatureError
from ppdd_core.package.archive import read_files, write_archive
from ppdd_core.package.build import PackageContent, Usage, source_summary, write_package
from ppdd_core.package.signature import fingerprint

Images = Callable[..., LabelledImages]
KEY = Ed25519PrivateKey.from_private_bytes(b"d" * 32)


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return value


@pytest.fixture
def package(tmp_path: Path, images: Images, distilled: Callable[..., DistilledSet]) -> Path:
    one = distilled(augment="crop")
    config = DetectorConfig(epochs=20, augment="crop", seeds=1)
    recipe = Recipe(
        image_size=16,
        net=one.net,
        distill=DistillConfig(images_per_class=2, augment="crop"),
        detector=config,
    )
    content = PackageContent(
        name="hospital-a/cxr",
        version="1.0.0",
        site_id="hospital-a",
        site_name="Hospital A",
        created="2026-11-22T08:00:00Z",
        distilled=one,
        recipe=recipe,
        source=source_summary(dict.fromkeys(one.classes, 100), 20),
        evaluation=evaluate_sets(
            [("distilled", one)],
            train=images([4, 4, 4], seed=20),
            validation=images([4, 4, 4], seed=21),
            test=images([4, 4, 4], seed=22),
            config=config,
            seed=0,
            baselines=(),
        ),
        privacy={
            "format_version": 1,
            "verdict": "failed",
            "reasons": ["nothing was measured"],
            "thresholds": {"max_membership_auc": 0.6},
            "initialisation": "noise",
            "measurements": [
                {
                    "name": "membership_inference_auc",
                    "title": "Membership inference, AUC",
                    "value": 0.7,
                    "interval": [0.6, 0.8],
                    "threshold": 0.6,
                    "passed": False,
                    "method": "loss threshold",
                    "does_not_show": "what a stronger attack finds",
                    "details": {},
                }
            ],
        },
        usage=Usage(licence="CC-BY-NC-4.0", purposes=("DUO:0000042",)),
        software={"ppdd": "0.1.0"},
    )
    write_package(tmp_path / "package", content, KEY)
    return tmp_path / "package"


@pytest.fixture
def folder(tmp_path: Path, images: Images, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PPDD_HOME", str(tmp_path / "home"))
    data = images([12, 12, 12], seed=9)
    for row, (pixels_HW, label) in enumerate(zip(data.pixels_RHW, data.labels_R, strict=True)):
        place = tmp_path / "xrays" / data.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels_HW).save(place / f"{row:02}.png")
    return tmp_path / "xrays"


def test_from_a_package_to_probabilities(package: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "detector"
    trained = run_json("train", package, "--out", out)
    assert trained["classes"] == ["COVID", "Normal", "Viral"]
    assert trained["epochs"] == 20  # as the package was evaluated
    assert trained["sources"][0]["name"] == "hospital-a/cxr"
    assert len(trained["sources"][0]["digest"]) == 64

    measured = run_json("evaluate", out, "--data", folder, "--split", "all")
    assert measured["images"] == 36
    assert measured["balanced_accuracy"] > 0.8
    assert 0 < run_json("evaluate", out, "--data", folder)["images"] < 36

    files = sorted((folder / "Viral").iterdir())[:2]
    predicted = run_json("predict", out, *files)
    assert predicted["use"] == "Research use only. Not for diagnosis."
    for one in predicted["predictions"]:
        assert sum(one["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert max(one["probabilities"], key=one["probabilities"].get) == "Viral"


def test_people_read_tables_and_the_warning(package: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "detector"
    shown = [
        run("train", package, "--out", out, "--epochs", 2),
        run("evaluate", out, "--data", folder, "--split", "all"),
        run("predict", out, folder / "COVID" / "00.png"),
    ]
    for text in shown:
        assert "Research use only. Not for diagnosis." in text
        assert "Viral" in text
    assert "hospital-a/cxr@1.0.0" in shown[0]
    assert "sensitivity" in shown[1]
    assert "probability" in shown[2]


def test_local_images_bring_their_training_split_only(
    package: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "detector"
    trained = run_json(
        "train",
        package,
        "--out",
        out,
        "--local",
        folder,
        "--epochs",
        1,
        "--map",
        "Viral=Pneumonia",
    )
    assert trained["classes"] == ["COVID", "Normal", "Pneumonia"]
    local = trained["sources"][-1]
    held_out = run_json("evaluate", out, "--data", folder, "--map", "Viral=Pneumonia")["images"]
    assert local["name"] == "local images"
    assert local["images"] + held_out < 36  # the rest is validation


def test_an_unreadable_image_is_named_and_the_others_are_shown(
    package: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "detector"
    run("train", package, "--out", out, "--epochs", 1)
    result = CliRunner().invoke(
        app,
        [
            "predict",
            str(out),
            str(tmp_path / "none.dcm"),
            str(folder / "COVID" / "00.png"),
            "--json",
        ],
    )
    assert result.exit_code == 1
    found = json.loads(result.stdout)["predictions"]
    assert "problem" in found[0]
    assert "probabilities" in found[1]
    assert "none.dcm" in result.stderr


def test_only_pinned_signers_are_accepted(package: Path, tmp_path: Path) -> None:
    stranger = fingerprint(Ed25519PrivateKey.from_private_bytes(b"e" * 32))
    with pytest.raises(SignatureError):
        run("train", package, "--out", tmp_path / "no", "--epochs", 1, "--key", stranger)
    both = ("--key", stranger, "--key", fingerprint(KEY))
    run("train", package, "--out", tmp_path / "yes", "--epochs", 1, *both)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param(["--map", "COVID"], "THEIR_CLASS=YOUR_CLASS", id="half a map"),
        pytest.param(["--map", "A=B", "--map", "A=C"], "two names", id="mapped twice"),
        pytest.param(
            ["--map", "Flu=COVID"], "no package or local image has that class", id="unknown class"
        ),
        pytest.param(["--where", "hospital=a"], "--local", id="where without local"),
        pytest.param(["--seed", "-1"], "from 0 to 2147483647", id="negative seed"),
        pytest.param(["--seed", "2147483648"], "from 0 to 2147483647", id="seed too large"),
        pytest.param(["--key", fingerprint(KEY), "--key", "abc"], "64 hex digits", id="key"),
        pytest.param(
            ["--net", "vgg11"], "at least 32 pixels, got 16", id="too small for the network"
        ),
    ],
)
def test_options_that_cannot_work_are_refused(
    package: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    with pytest.raises(BadConfigError, match=says):
        run("train", package, "--out", tmp_path / "no", *options)
    assert not (tmp_path / "no").exists()


def test_an_existing_folder_is_refused_before_any_training(package: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="exists already"):
        run("train", package, "--out", package)


def test_a_map_for_a_class_the_images_lack_is_refused(
    package: Path, folder: Path, tmp_path: Path
) -> None:
    run("train", package, "--out", tmp_path / "detector", "--epochs", 1)
    with pytest.raises(BadConfigError, match="class map renames 'Flu'"):
        run("evaluate", tmp_path / "detector", "--data", folder, "--map", "Flu=COVID")


def test_a_seed_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(BadConfigError, match="--seed must be from 0"):
        run("train", tmp_path / "nothing", "--out", tmp_path / "no", "--seed", 2**31)


def test_a_package_given_twice_is_refused_before_local_images_are_read(
    package: Path, tmp_path: Path
) -> None:
    write_archive(read_files(package).files, tmp_path / "again.zip")
    with pytest.raises(BadConfigError, match=r"hospital-a/cxr 1\.0\.0 was given twice"):
        run(
            *("train", package, tmp_path / "again.zip", "--out", tmp_path / "no"),
            *("--local", tmp_path / "nothing"),
        )


def test_a_place_where_no_folder_can_be_is_refused_before_any_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for place, says in (
        ("file/x", "not a folder"),
        ("file/x/y", "not a folder"),
        ("link", "exists"),
    ):
        with pytest.raises(BadConfigError, match=says):
            run("train", tmp_path / "nothing", "--out", tmp_path / place)


def test_a_file_name_that_is_no_text_is_shown_and_gives_json(
    package: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "detector"
    run("train", package, "--out", out, "--epochs", 1)
    image = tmp_path / os.fsdecode(b"caf\xe9.png")
    shutil.copy(folder / "COVID" / "00.png", image)
    printed = run("predict", out, image, "--json")
    assert (
        "\\ud" not in printed
    )  # half a surrogate pair is no Unicode: other readers of JSON refuse it
    assert json.loads(printed)["predictions"][0]["image"].endswith("caf\\xe9.png")
    assert "\\xe9" in "".join(run("predict", out, image).split())

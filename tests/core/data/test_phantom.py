"""Drawn chest X-rays: repeatable, shaped like chests, sick where their class says, and not too easy."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from typer.testing import CliRunner

from ppdd_core.cli.phantom import app
from ppdd_core.data.phantom import (
    CLASSES,
    PROPORTIONS,
    SITES,
    Phantoms,
    draw_phantoms,
    images_of,
    write_phantoms,
)
from ppdd_core.errors import BadConfigError, SourceError

BALANCED = dict.fromkeys(CLASSES, 1.0)


@lru_cache(maxsize=1)
def balanced_set() -> Phantoms:
    return draw_phantoms(images=900, image_size=32, seed=1, proportions=BALANCED)


@lru_cache(maxsize=8)
def all_with(name: str) -> NDArray[np.float64]:
    """The same patients, all of them with one disease."""
    drawn = draw_phantoms(images=40, image_size=48, seed=3, proportions={name: 1.0})
    return drawn.pixels_RHW.astype(np.float64)


# ------------------------------------------------------------------------------------------- repeatable


def test_a_shorter_draw_is_the_beginning_of_a_longer_one() -> None:
    short = draw_phantoms(images=7, image_size=32, seed=5)
    long = draw_phantoms(images=15, image_size=32, seed=5)
    assert np.array_equal(short.pixels_RHW, long.pixels_RHW[:7])
    assert short.labels_R.tolist() == long.labels_R[:7].tolist()
    assert short.patients == long.patients[:7]
    assert short.splits == long.splits[:7]


@pytest.mark.parametrize("other", [{"seed": 6}, {"site": "b"}], ids=["seed", "site"])
def test_another_seed_or_site_draws_other_patients(other: dict[str, Any]) -> None:
    first = draw_phantoms(images=3, image_size=32, seed=5)
    second = draw_phantoms(**{"images": 3, "image_size": 32, "seed": 5} | other)
    assert not set(first.patients) & set(second.patients)
    assert np.abs(first.pixels_RHW.astype(int) - second.pixels_RHW).mean() > 5


def test_images_of_one_patient_are_alike_but_not_equal() -> None:
    drawn = draw_phantoms(images=60, image_size=32, seed=2, proportions={"Normal": 1})
    pixels_RHW = drawn.pixels_RHW.astype(float)
    gap = np.abs(pixels_RHW[1:] - pixels_RHW[:-1]).mean(axis=(1, 2))
    same = np.array([a == b for a, b in zip(drawn.patients, drawn.patients[1:], strict=False)])
    assert gap[same].min() > 1
    assert gap[same].mean() < 0.75 * gap[~same].mean()


@pytest.mark.parametrize("image_size", [32, 45, 112, 512])
def test_every_size_shows_the_same_patient(image_size: int) -> None:
    drawn = draw_phantoms(images=1, image_size=image_size, seed=4)
    assert drawn.pixels_RHW.dtype == np.uint8
    assert drawn.pixels_RHW.shape == (1, image_size, image_size)
    reference = draw_phantoms(images=1, image_size=256, seed=4).pixels_RHW[0]
    small = [
        np.asarray(Image.fromarray(pixels_HW).resize((32, 32), Image.Resampling.BOX)).ravel()
        for pixels_HW in (drawn.pixels_RHW[0], reference)
    ]
    assert np.corrcoef(small)[0, 1] > 0.97


# ------------------------------------------------------------------------------------- shaped like a chest


def test_lungs_are_dark_and_the_heart_lies_to_the_right_of_the_image() -> None:
    mean_HW = all_with("Normal").mean(axis=0) / 255
    lungs = (mean_HW[18:26, 11:16].mean() + mean_HW[18:26, 32:37].mean()) / 2
    assert mean_HW[12:40, 23:26].mean() > lungs + 0.35  # spine and great vessels
    assert mean_HW[43:, 14:34].mean() > lungs + 0.35  # under the domes
    assert mean_HW[28:33, 28:31].mean() > mean_HW[28:33, 17:20].mean() + 0.1  # heart
    assert mean_HW[:3, :5].mean() < lungs  # air over the shoulders


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "Normal"])
def test_the_same_patient_in_another_class_differs_by_a_brighter_lung_only(name: str) -> None:
    added_RHW = all_with(name) - all_with("Normal")
    lungs = added_RHW[:, 10:36, 8:40].mean()
    rim = np.concatenate([added_RHW[:, :4].ravel(), added_RHW[:, :, :3].ravel()])
    assert lungs > 2
    assert np.abs(rim).mean() < 0.5 * lungs  # the grey window moves a little


def right_share(name: str) -> NDArray[np.float64]:
    """Share of the added brightness in the image's right half, one value per image."""
    added_RHW = np.maximum(all_with(name) - all_with("Normal") - 6, 0)
    total_R = added_RHW.sum(axis=(1, 2))
    seen = total_R > 300
    assert seen.mean() > 0.7
    share_R: NDArray[np.float64] = added_RHW[seen][:, :, 24:].sum(axis=(1, 2)) / total_R[seen]
    return share_R


def test_lung_opacity_takes_one_side_and_the_other_diseases_both() -> None:
    one_sided = {
        name: float((np.abs(right_share(name) - 0.5) > 0.4).mean())
        for name in ("COVID", "Lung Opacity", "Viral Pneumonia")
    }
    assert one_sided["Lung Opacity"] > 0.8
    assert one_sided["COVID"] < 0.2
    assert one_sided["Viral Pneumonia"] < 0.2
    assert 0.2 < (right_share("Lung Opacity") > 0.5).mean() < 0.8


def test_covid_is_peripheral_and_low_and_viral_pneumonia_central() -> None:
    row, column = np.indices((48, 48))
    place = {}
    for name in ("COVID", "Viral Pneumonia"):
        added_HW = np.maximum(all_with(name) - all_with("Normal"), 0).mean(axis=0)
        added_HW /= added_HW.sum()
        away = np.abs(column - 23.5)
        place[name] = (float((added_HW * away).sum()), float((added_HW * row).sum()))
    assert place["COVID"][0] > place["Viral Pneumonia"][0] + 3
    assert place["COVID"][1] > place["Viral Pneumonia"][1] + 1


def test_sites_differ_in_what_their_images_look_like() -> None:
    drawn = {
        site: draw_phantoms(images=40, image_size=32, seed=1, site=site).pixels_RHW.astype(float)
        for site in SITES
    }
    grey = {site: pixels_RHW.mean() for site, pixels_RHW in drawn.items()}
    assert grey["b"] > grey["a"] + 8
    assert grey["a"] > grey["c"] + 8


# ----------------------------------------------------------------------------------------- not too easy


def halves() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    drawn = balanced_set()
    grey_RP = drawn.pixels_RHW.reshape(len(drawn), -1) / 255.0
    return grey_RP, drawn.labels_R, np.array([split == "train" for split in drawn.splits])


def test_brightness_does_not_give_the_class_away() -> None:
    grey_RP, labels_R, train_R = halves()
    mean_R, spread_R = grey_RP.mean(axis=1), grey_RP.std(axis=1)
    summary_R2 = np.stack([mean_R, spread_R], axis=1) / grey_RP.std()
    centre_K2 = np.stack([summary_R2[train_R & (labels_R == k)].mean(axis=0) for k in range(4)])
    distance = ((summary_R2[~train_R, None] - centre_K2) ** 2).sum(axis=-1)
    assert balanced_accuracy_score(labels_R[~train_R], distance.argmin(axis=1)) < 0.42


def test_the_nearest_class_mean_is_often_wrong() -> None:
    grey_RP, labels_R, train_R = halves()
    centre_KP = np.stack([grey_RP[train_R & (labels_R == k)].mean(axis=0) for k in range(4)])
    distance = ((grey_RP[~train_R, None] - centre_KP) ** 2).sum(axis=-1)
    assert balanced_accuracy_score(labels_R[~train_R], distance.argmin(axis=1)) < 0.5


def test_a_linear_classifier_learns_something_and_not_enough() -> None:
    grey_RP, labels_R, train_R = halves()
    best = max(
        balanced_accuracy_score(
            labels_R[~train_R],
            RidgeClassifier(alpha=alpha)
            .fit(grey_RP[train_R], labels_R[train_R])
            .predict(grey_RP[~train_R]),
        )
        for alpha in (10.0, 100.0)
    )
    assert 0.35 < best < 0.7


@pytest.mark.slow
def test_a_small_network_learns_what_a_linear_one_cannot_and_needs_its_epochs() -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from ppdd_core.config import NetConfig
    from ppdd_core.nets.functional import FlatNet

    drawn = draw_phantoms(images=2000, image_size=32, seed=5, proportions=BALANCED)
    grey_RHW = drawn.pixels_RHW.astype(np.float32) / 255
    train_R = np.array([split == "train" for split in drawn.splits])
    grey_RHW = (grey_RHW - grey_RHW[train_R].mean()) / grey_RHW[train_R].std()
    x_RCHW, y_R = torch.from_numpy(grey_RHW)[:, None], torch.from_numpy(drawn.labels_R)
    x_train, y_train, x_test = x_RCHW[train_R], y_R[train_R], x_RCHW[~train_R]

    net = FlatNet(NetConfig(width=16, depth=3), classes=4, image_size=32)
    theta_P = net.initial(0).requires_grad_()
    optimiser = torch.optim.SGD([theta_P], lr=0.02, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    after = []
    for _ in range(20):
        for batch in torch.randperm(len(x_train), generator=generator).split(64):
            optimiser.zero_grad()
            cross_entropy(net(theta_P, x_train[batch]), y_train[batch]).backward()
            optimiser.step()
        with torch.no_grad():
            said_R = net(theta_P, x_test).argmax(dim=1).numpy()
        after.append(balanced_accuracy_score(drawn.labels_R[~train_R], said_R))
    assert after[0] < 0.65
    assert max(after[:3]) < 0.72
    assert np.mean(after[-3:]) > 0.75


# ------------------------------------------------------------------------------ classes, patients, splits


def test_class_sizes_follow_the_proportions() -> None:
    labels = Counter(CLASSES[k] for k in draw_phantoms(images=200, image_size=32, seed=9).labels_R)
    total = sum(PROPORTIONS.values())
    for name in CLASSES:
        assert labels[name] == pytest.approx(200 * PROPORTIONS[name] / total, abs=4)
    assert set(Counter(balanced_set().labels_R.tolist()).values()) <= set(range(221, 230))


def test_a_class_left_out_gets_no_image() -> None:
    drawn = draw_phantoms(images=12, image_size=32, seed=0, proportions={"COVID": 1, "Normal": 2})
    assert drawn.classes == CLASSES
    assert {drawn.classes[k] for k in drawn.labels_R} == {"COVID", "Normal"}


def test_a_patient_has_one_class_and_stays_on_one_side_of_the_split() -> None:
    drawn = balanced_set()
    seen: dict[str, tuple[str, int]] = {}
    for patient, split, label in zip(drawn.patients, drawn.splits, drawn.labels_R, strict=True):
        assert seen.setdefault(patient, (split, label)) == (split, label)
    for k in range(4):
        mine = [drawn.splits[row] for row in np.flatnonzero(drawn.labels_R == k)]
        assert 0.1 < mine.count("test") / len(mine) < 0.3


def test_images_of_counts_the_images_of_the_first_patients() -> None:
    drawn = draw_phantoms(images=30, image_size=32, seed=8)
    count = images_of(5, seed=8)
    assert len(set(drawn.patients[:count])) == 5
    assert len(set(drawn.patients[: count + 1])) == 6


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param({"site": "z"}, "site must be one of a, b, c", id="site"),
        pytest.param({"image_size": 31}, "32…512", id="too small"),
        pytest.param({"image_size": 513}, "32…512", id="too large"),
        pytest.param({"images": 0}, "at least 1", id="no images"),
        pytest.param({"proportions": {"Influenza": 1}}, "no such class: Influenza", id="class"),
        pytest.param({"proportions": {"COVID": -1, "Normal": 2}}, "0 or more", id="negative"),
        pytest.param({"proportions": {"COVID": float("nan")}}, "0 or more", id="not a number"),
        pytest.param({"proportions": {}}, "not all 0", id="nothing"),
    ],
)
def test_refuses(wrong: dict[str, Any], says: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"images": 2, "image_size": 32, "seed": 0} | wrong
    with pytest.raises(BadConfigError, match=says):
        draw_phantoms(**arguments)
    with pytest.raises(BadConfigError, match=says):
        write_phantoms(tmp_path / "new", **arguments)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------- the dataset folder


def test_writes_what_it_draws_with_a_manifest(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    write_phantoms(
        tmp_path / "new" / "set",
        images=9,
        image_size=32,
        seed=5,
        site="b",
        on_progress=lambda done, total: heard.append((done, total)),
    )
    drawn = draw_phantoms(images=9, image_size=32, seed=5, site="b")
    with (tmp_path / "new/set/manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [CLASSES[k] for k in drawn.labels_R]
    assert tuple(row["patient_id"] for row in rows) == drawn.patients
    assert tuple(row["split"] for row in rows) == drawn.splits
    assert {row["hospital"] for row in rows} == {"b"}
    for row, pixels_HW in zip(rows, drawn.pixels_RHW, strict=True):
        assert row["path"].startswith(f"{row['label']}/images/{row['label']}-")
        with Image.open(tmp_path / "new/set" / row["path"]) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), pixels_HW)
            assert "no patient" in image.info["Description"]
    assert heard == [(done, 9) for done in range(1, 10)]
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["set"]


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "set", images=9, image_size=32, seed=5, on_progress=stop)
    assert not list(tmp_path.iterdir())


def test_never_writes_into_a_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(SourceError, match="not an empty folder"):
        write_phantoms(tmp_path, images=2, image_size=32, seed=0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    write_phantoms(tmp_path / "empty", images=2, image_size=32, seed=0)
    assert (tmp_path / "empty/manifest.csv").is_file()


def test_the_command_writes_a_folder_and_counts_it(tmp_path: Path) -> None:
    where = tmp_path / "set"
    arguments = [
        "write",
        str(where),
        "--patients",
        "6",
        "--size",
        "32",
        "--seed",
        "2",
        "--balanced",
    ]
    result = CliRunner().invoke(app, [*arguments, "--hospital", "c", "--json"])
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["patients"] == 6
    assert (
        value["images"]
        == len(list(where.rglob("*.png")))
        == images_of(6, seed=2, site="c", proportions=BALANCED)
    )
    assert sum(sum(count.values()) for count in value["classes"].values()) == value["images"]
    both = CliRunner().invoke(app, [*arguments, "--images", "5"])
    assert isinstance(both.exception, BadConfigError)


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_the_command_takes_the_seeds_that_a_recipe_takes(tmp_path: Path, seed: int) -> None:
    arguments = ["write", str(tmp_path / "set"), "--images", "1", "--seed", str(seed)]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, BadConfigError)
    assert "from 0 to 2147483647" in str(refused.exception)
    assert not list(tmp_path.iterdir())


def test_the_command_refuses_a_place_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    refused = CliRunner().invoke(app, ["write", str(tmp_path / "file" / "set"), "--images", "1"])
    assert isinstance(refused.exception, SourceError)
    assert "is not a folder" in str(refused.exception)


def test_drawing_needs_no_torch() -> None:
    code = "import sys, ppdd_core.cli.phantom; sys.exit({'torch', 'scipy'} & set(sys.modules) != set())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

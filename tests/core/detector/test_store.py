"""A detector on disk: what is written comes back, and every planted fault is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet
from ppdd_core.detector.model import Detector
from ppdd_core.detector.store import load_detector, save_detector
from ppdd_core.detector.train import train_detector
from ppdd_core.detector.use import DESCRIPTION, USE, WEIGHTS
from ppdd_core.errors import DigestMismatchError, PackageError, PpddError

CONFIG = DetectorConfig(epochs=1, augment="")


@pytest.fixture
def detector(distilled: Callable[..., DistilledSet], small_net: NetConfig) -> Detector:
    return train_detector(
        [distilled()],
        net=small_net,
        config=CONFIG,
        seed=3,
        class_map={"Viral": "Viral Pneumonia"},
        names=[("st-mary/cxr", "1.2.0", "ab" * 32)],
    )


@pytest.fixture
def folder(detector: Detector, tmp_path: Path) -> Path:
    return save_detector(detector, tmp_path / "detectors" / "one")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((folder / DESCRIPTION).read_text())
    change(value)
    (folder / DESCRIPTION).write_text(json.dumps(value))


def test_a_detector_comes_back_as_it_was(
    detector: Detector, folder: Path, images: Callable[..., LabelledImages]
) -> None:
    back = load_detector(folder)
    assert torch.equal(back.theta_P, detector.theta_P)
    for name in (
        "net",
        "classes",
        "image_size",
        "normalisation",
        "sources",
        "class_map",
        "config",
        "seed",
    ):
        assert getattr(back, name) == getattr(detector, name), name
    pixels_RHW = images([2, 2, 2]).pixels_RHW
    assert np.array_equal(back.probabilities(pixels_RHW), detector.probabilities(pixels_RHW))


def test_the_folder_holds_json_and_safetensors_and_says_what_it_is_for(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [DESCRIPTION, WEIGHTS]
    assert list(folder.parent.iterdir()) == [folder]  # nothing half-written beside it
    value = json.loads((folder / DESCRIPTION).read_text())
    assert value["use"] == USE == "Research use only. Not for diagnosis."
    assert value["sources"][0]["name"] == "st-mary/cxr"


def test_the_same_detector_gives_the_same_bytes(
    detector: Detector, folder: Path, tmp_path: Path
) -> None:
    again = save_detector(detector, tmp_path / "again")
    for name in (DESCRIPTION, WEIGHTS):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_with_content_is_never_overwritten(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PackageError, match="exists already"):
        save_detector(detector, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_diverged_detector_is_not_written(detector: Detector, tmp_path: Path) -> None:
    detector.theta_P[0] = float("nan")
    with pytest.raises(PackageError, match="not finite"):
        save_detector(detector, tmp_path / "one")
    assert not list(tmp_path.iterdir())


def test_weights_with_another_digest_are_refused(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    with pytest.raises(DigestMismatchError, match="weights.safetensors was changed"):
        load_detector(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(
            lambda v: v.update(format_version=2), "format version 2 is unknown", id="version"
        ),
        pytest.param(lambda v: v.pop("classes"), "see 'classes'", id="field missing"),
        pytest.param(lambda v: v.update(run="rm"), "see 'run'", id="field unknown"),
        pytest.param(lambda v: v.update(classes=["A", "A"]), "different names", id="class twice"),
        pytest.param(
            lambda v: v.update(classes=["A", "B\x1b[2J", "C"]), "printable", id="control character"
        ),
        pytest.param(lambda v: v.update(image_size=10**9), "from 8 to 512", id="image size"),
        pytest.param(lambda v: v["normalisation"].update(std=0), "normalisation.std", id="std"),
        pytest.param(
            lambda v: v["net"].update(architecture="eval"), "net.architecture", id="network"
        ),
        pytest.param(lambda v: v["net"].update(width=True), "net.width must be a int", id="type"),
        pytest.param(lambda v: v["net"].update(depth=8), "too deep", id="depth"),
        pytest.param(lambda v: v["training"].update(epochs=0), "detector.epochs", id="training"),
        pytest.param(lambda v: v["weights"].update(file="../x"), "weights must name", id="path"),
        pytest.param(lambda v: v.update(sources="me"), "sources must be a list", id="sources"),
        pytest.param(
            lambda v: v["sources"][0].update(images=-1), "sources\\[0\\].images", id="count"
        ),
        pytest.param(
            lambda v: v["sources"][0].update(learning_rate=1e9), "learning_rate", id="step size"
        ),
        pytest.param(lambda v: v.update(seed=1.5), "seed must be a whole number", id="seed"),
        pytest.param(lambda v: v.update(classes=["A", "B"]), "must be float32", id="other shapes"),
    ],
)
def test_a_wrong_description_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    rewrite(folder, change)
    with pytest.raises(PackageError, match=says):
        load_detector(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("{", "is not JSON", id="cut"),
        pytest.param("[" * 100_000, "is not JSON", id="deep"),
        pytest.param('{"seed": NaN}', "NaN is not a number", id="NaN"),
        pytest.param("7", "must be an object", id="no object"),
        pytest.param(" " * (1 << 21), "larger than", id="huge"),
        pytest.param("\udce9", "is not JSON", id="not UTF-8"),
    ],
)
def test_a_description_that_is_none_is_refused(folder: Path, text: str, says: str) -> None:
    (folder / DESCRIPTION).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(PackageError, match=says):
        load_detector(folder)


def weights_of(folder: Path, parts: dict[str, torch.Tensor]) -> None:
    """Replace the weights and make the digest fit, as a forger would."""
    import hashlib

    save_file(parts, folder / WEIGHTS)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    rewrite(folder, lambda v: v["weights"].update(sha256=digest))


def test_forged_weights_are_refused(detector: Detector, folder: Path) -> None:
    named = {
        name: part.clone().contiguous()
        for name, part in detector.flat_net().split(detector.theta_P).items()
    }
    first = next(iter(named))
    weights_of(folder, {name: part for name, part in named.items() if name != first})
    with pytest.raises(PackageError, match="does not hold the weights of a convnet"):
        load_detector(folder)
    weights_of(folder, named | {first: named[first].half()})
    with pytest.raises(PackageError, match="must be float32"):
        load_detector(folder)
    weights_of(folder, named | {first: torch.full_like(named[first], float("inf"))})
    with pytest.raises(PackageError, match="not finite"):
        load_detector(folder)
    weights_of(folder, named | {"more": torch.zeros(1 << 20)})
    with pytest.raises(PackageError, match="larger than"):
        load_detector(folder)


def test_something_else_under_the_name_of_the_weights_is_refused(folder: Path) -> None:
    import hashlib

    (folder / WEIGHTS).write_bytes(b"\x80\x04pickle")
    digest = hashlib.sha256(b"\x80\x04pickle").hexdigest()
    rewrite(folder, lambda v: v["weights"].update(sha256=digest))
    with pytest.raises(PackageError, match="no safetensors file"):
        load_detector(folder)


def test_links_and_missing_files_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).rename(tmp_path / "elsewhere")
    with pytest.raises(PackageError, match="is missing"):
        load_detector(folder)
    (folder / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PpddError, match="cannot be read"):
        load_detector(folder)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(PackageError, match="not a regular file|cannot be read"):
        load_detector(folder)


def test_a_place_where_no_folder_can_be_is_refused(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("keep")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for place, says in (("file/x", "not a folder"), ("link", "exists already")):
        with pytest.raises(PackageError, match=says):
            save_detector(detector, tmp_path / place)

"""Files to probabilities, in order; a bad file is reported and stops no other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import DistilledSet
from ppdd_core.detector import predict
from ppdd_core.detector.predict import predict_files
from ppdd_core.detector.train import train_detector
from ppdd_core.errors import BadConfigError


def test_every_file_gets_its_probabilities_or_a_reason(
    tmp_path: Path,
    distilled: Callable[..., DistilledSet],
    images: Callable[..., LabelledImages],
    small_net: NetConfig,
) -> None:
    detector = train_detector(
        [distilled()], net=small_net, config=DetectorConfig(epochs=20, augment="crop"), seed=0
    )
    data = images([2, 2, 2], seed=6)
    paths = [tmp_path / f"{number}.png" for number in range(6)]
    for path, pixels_HW in zip(paths, data.pixels_RHW, strict=True):
        Image.fromarray(pixels_HW).save(path)
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(b"not an image")
    order = [paths[5], broken, paths[0], missing, *paths[1:5]]

    seen: list[tuple[int, int]] = []
    found = predict_files(detector, order, on_progress=lambda *at: seen.append(at))

    assert [one.path for one in found] == order
    assert seen[-1] == (8, 8)
    assert found[1].probabilities is None
    assert "broken.png" in (found[1].problem or "")
    assert "cannot be read" in (found[3].problem or "")
    rows = np.array([one.probabilities for one in found if one.probabilities])
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(rows[0], detector.probabilities(data.pixels_RHW[5:6])[0], atol=1e-5)
    assert rows[0].argmax() == 2


def test_pixels_of_another_size_are_refused(
    distilled: Callable[..., DistilledSet], small_net: NetConfig
) -> None:
    detector = train_detector([distilled()], net=small_net, config=DetectorConfig(epochs=1), seed=0)
    with pytest.raises(BadConfigError, match="16 x 16 pixels, got uint8 \\(32, 32\\)"):
        detector.probabilities(np.zeros((1, 32, 32), dtype=np.uint8))


def test_pipes_and_devices_are_refused_at_once_and_sizes_bounded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    distilled: Callable[..., DistilledSet],
    small_net: NetConfig,
) -> None:
    detector = train_detector([distilled()], net=small_net, config=DetectorConfig(epochs=1), seed=0)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.png").write_bytes(bytes(101))
    monkeypatch.setattr(predict, "MAX_FILE_BYTES", 100)
    paths = [tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "large.png"]
    problems = [one.problem or "" for one in predict_files(detector, paths)]
    assert problems[:3] == ["it is not a plain file"] * 3
    assert "larger than" in problems[3]

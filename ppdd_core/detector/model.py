"""Detector: a trained network together with what is needed to use it on a new image.

How it is trained is in `train`, how it is kept in `store`.

Shape suffixes: P flat parameters, R images, H W height width, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.data.dataset import LabelledImages
from ppdd_core.data.distilled import Normalisation
from ppdd_core.data.tensors import normalise
from ppdd_core.detector.joining import HOW
from ppdd_core.detector.metrics import Metrics, measure
from ppdd_core.errors import BadConfigError, SourceError, TrainingError
from ppdd_core.nets.fit import predict
from ppdd_core.nets.functional import FlatNet

BLOCK = 1024  # images turned into float at a time


@dataclass(frozen=True, slots=True)
class Source:
    """One thing a detector learned from, without saying where it lies."""

    name: str  # site/name of a package, or "local images"
    version: str  # of the package; empty for local images
    digest: str  # sha256 of the package's manifest, or fingerprint of the local images
    images: int
    classes: tuple[str, ...]  # as the source names them
    learning_rate: float  # the step size its batches were trained with


@dataclass(frozen=True, slots=True)
class Detector:
    """A classifier of grey chest X-rays; research use only."""

    theta_P: Tensor  # float32
    net: NetConfig
    classes: tuple[str, ...]
    image_size: int
    normalisation: Normalisation
    sources: tuple[Source, ...]
    class_map: tuple[
        tuple[str, str], ...
    ]  # (name at the source, name here), only where they differ
    config: DetectorConfig
    seed: int

    def flat_net(self) -> FlatNet:
        """Return the network that `theta_P` belongs to."""
        return FlatNet(self.net, classes=len(self.classes), image_size=self.image_size)

    def probabilities(self, pixels_RHW: np.ndarray) -> np.ndarray:
        """Return the probability of every class for grey uint8 images of `image_size`; float32 [R, K].

        Another size raises BadConfigError, output that is not finite TrainingError.
        """
        if pixels_RHW.dtype != np.uint8 or pixels_RHW.shape[1:] != (
            self.image_size,
            self.image_size,
        ):
            raise BadConfigError(
                f"this detector reads grey uint8 images of {self.image_size} x {self.image_size} pixels, "
                f"got {pixels_RHW.dtype} {pixels_RHW.shape[1:]}"
            )
        found_RK = predict_pixels(self.flat_net(), self.theta_P, pixels_RHW, self.normalisation)
        if not np.isfinite(found_RK).all():
            raise TrainingError(
                "the detector's output is not finite: its weights are of no use; train it again"
            )
        return found_RK

    def evaluate(
        self, data: LabelledImages, *, class_map: Mapping[str, str] | None = None
    ) -> Metrics:
        """Return how well the detector does on labelled images, e.g. of another hospital.

        `class_map` renames classes of `data`. A class that the detector, or the map's that `data`, does not
        have raises BadConfigError; no images, SourceError.
        """
        class_map = class_map or {}
        absent = sorted(set(class_map) - set(data.classes))
        if absent:
            raise BadConfigError(
                f"the class map renames {absent[0]!r}, but the images have only {', '.join(data.classes)}"
            )
        renamed = rename(data.classes, class_map)
        unknown = [name for name in renamed if name not in self.classes]
        if unknown:
            raise BadConfigError(
                f"the images have a class {unknown[0]!r}, which the detector was not trained on "
                f"(it knows {', '.join(self.classes)}); rename it by mapping {unknown[0]}=CLASS, "
                f"or leave it out {HOW}"
            )
        if len(data) == 0:
            raise SourceError("there are no images to evaluate on; check the filters and the split")
        numbers_K = np.array([self.classes.index(name) for name in renamed], dtype=np.int64)
        probabilities_RK = self.probabilities(data.pixels_RHW)
        return measure(numbers_K[data.labels_R], probabilities_RK, self.classes)


def predict_pixels(
    net: FlatNet, theta_P: Tensor, pixels_RHW: np.ndarray, normalisation: Normalisation
) -> np.ndarray:
    """Return class probabilities of grey uint8 images, float32 [R, K]; block by block, on theta_P's device."""
    parts = [np.empty((0, net.classes), dtype=np.float32)]
    for start in range(0, len(pixels_RHW), BLOCK):
        block = torch.from_numpy(np.array(pixels_RHW[start : start + BLOCK])).unsqueeze(1)
        parts.append(predict(net, theta_P, normalise(block, normalisation)).cpu().numpy())
    return np.concatenate(parts)


def rename(classes: tuple[str, ...], class_map: Mapping[str, str]) -> tuple[str, ...]:
    """Return the classes under their new names, order kept."""
    return tuple(class_map.get(name, name) for name in classes)

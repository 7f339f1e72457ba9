"""The images of a side now and then on its way, and how good networks become that are trained on them.

Both sides are judged alike: fresh networks trained as the recipe's detector is, balanced accuracy on validation
patients. The test images are not looked at.

Shape suffixes: I synthetic images, C H W channel height width, K classes, P flat network parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ppdd_core.config import Recipe
from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.detector.metrics import measure
from ppdd_core.detector.model import predict_pixels
from ppdd_core.errors import TrainingError
from ppdd_core.nets.fit import train_on_set
from ppdd_core.nets.functional import FlatNet
from ppdd_core.pipeline import Images
from ppdd_core.run_folder import read_json
from ppdd_core.seeding import derive


@dataclass(frozen=True, slots=True)
class Snapshots:
    """One file per step at which images and α were kept, and their scores."""

    folder: Path

    def keep(self, step: int, images_ICHW: Tensor, labels: Tensor, lr: float) -> None:
        """Keep what a side has after `step` steps; `labels` are class numbers [I] or probabilities [I, K]."""
        stored = {
            name: one.detach().cpu().contiguous()
            for name, one in (("images", images_ICHW), ("labels", labels))
        }
        write_atomically(self._file(step), save(stored, {"lr": json.dumps(lr)}))

    def steps(self) -> list[int]:
        """Return the steps that were kept, in order."""
        return sorted(int(file.stem) for file in self.folder.glob("*.safetensors"))

    def read(self, step: int) -> tuple[Tensor, Tensor, float]:
        """Return images, labels and α."""
        with safe_open(self._file(step), framework="pt") as opened:
            images_ICHW, labels = opened.get_tensor("images"), opened.get_tensor("labels")
            return images_ICHW, labels, float(json.loads(opened.metadata()["lr"]))

    def scores(self) -> dict[int, list[float]]:
        """Return the balanced accuracy of every network trained on each kept step that was scored."""
        path = self.folder / "scores.json"
        return {int(step): of for step, of in read_json(path).items()} if path.exists() else {}

    def score(
        self,
        images: Images,
        recipe: Recipe,
        device: torch.device,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        """Score what is not scored yet."""
        scores, steps = self.scores(), self.steps()
        for done, step in enumerate(steps, start=1):
            if step not in scores:
                scores[step] = balanced_accuracies(*self.read(step), images, recipe, device)
                write_atomically(
                    self.folder / "scores.json", json_bytes({str(k): v for k, v in scores.items()})
                )
            on_progress("evaluation", done, len(steps))

    def _file(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"


def balanced_accuracies(
    images_ICHW: Tensor,
    labels: Tensor,
    lr: float,
    images: Images,
    recipe: Recipe,
    device: torch.device,
) -> list[float]:
    """Return what `detector.seeds` fresh networks reach; guessing where a step size cannot be trained with."""
    train, validation = images.split.train, images.split.validation
    net = FlatNet(recipe.net, classes=len(train.classes), image_size=recipe.image_size)
    config = replace(recipe.detector, augment=recipe.distill.augment)
    found = []
    for number in range(config.seeds):
        seed = derive(recipe.seed, "snapshot", number) % 2**31
        try:
            theta_P = train_on_set(
                net,
                net.initial(derive(seed, "fresh network")).to(device),
                images_ICHW.to(device),
                labels.to(device),
                config=config,
                lr=lr,
                seed=seed,
            )
        except TrainingError:
            found.append(1 / len(train.classes))
            continue
        probabilities_RK = predict_pixels(net, theta_P, validation.pixels_RHW, images.normalisation)
        figures = measure(validation.labels_R, probabilities_RK, validation.classes)
        found.append(figures.balanced_accuracy)
    return found

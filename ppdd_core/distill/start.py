"""What the synthetic images start from: noise, single real images, or means of several.

Noise (the default) touches no patient. A real image as a start is the main known leak of dataset distillation
(Dong et al. 2022; Zhao and Zhang 2025), so its sources are returned for the privacy report.

Shape suffixes: I synthetic images, R real images, C H W channel height width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppdd_core.data.distilled import Normalisation
from ppdd_core.data.tensors import normalise
from ppdd_core.errors import BadConfigError


def synthetic_labels(classes: int, images_per_class: int) -> Tensor:
    """Return class numbers 0…0 1…1 2…2, int64 [I]."""
    return torch.arange(classes).repeat_interleave(images_per_class)


def starting_images(
    init: str,
    labels_I: Tensor,
    pixels_RCHW: Tensor,
    labels_R: Tensor,
    normalisation: Normalisation,
    *,
    names: tuple[str, ...],
    mean_of: int,
    generator: torch.Generator,
) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
    """Return the first synthetic images, float32 [I, C, H, W], and for each the rows of real images it is made of.

    No real image starts two synthetic ones; it enters a second mean only when all of its class have entered one.
    A class with fewer real images than that takes raises BadConfigError.
    """
    shape = (len(labels_I), *pixels_RCHW.shape[1:])
    if init == "noise":
        return torch.randn(shape, generator=generator), ((),) * len(labels_I)
    per_image = mean_of if init == "mean" else 1
    images_ICHW = torch.empty(shape)
    sources: list[tuple[int, ...]] = [()] * len(labels_I)
    for label in labels_I.unique():
        places = (labels_I == label).nonzero().flatten()
        rows = (labels_R == label).nonzero().flatten()
        of_a_round = len(rows) // per_image  # images that one pass over the real ones is enough for
        needed = len(places) if init == "real" else 1
        if of_a_round < needed:
            raise BadConfigError(
                f"init = {init} needs {per_image * needed} images of {names[int(label)]} to train on, "
                f"there are {len(rows)}; use {'a smaller mean_of' if init == 'mean' else 'fewer images per class'}, "
                "or init = noise"
            )
        for begin in range(0, len(places), of_a_round):
            order = rows[torch.randperm(len(rows), generator=generator)]
            groups = order[: of_a_round * per_image].view(of_a_round, per_image)
            for place, group in zip(places[begin : begin + of_a_round], groups, strict=False):
                images_ICHW[place] = normalise(pixels_RCHW[group], normalisation).mean(0)
                sources[place] = tuple(group.tolist())
    return images_ICHW, tuple(sources)

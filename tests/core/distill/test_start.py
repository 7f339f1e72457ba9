"""Where synthetic images start: which real images enter, and how often."""

import pytest
import torch
from torch import Tensor

from ppdd_core.data.distilled import Normalisation
from ppdd_core.distill.start import starting_images, synthetic_labels
from ppdd_core.errors import BadConfigError

GREY = Normalisation(mean=0.5, std=0.25)
LABELS = torch.tensor([0] * 7 + [1] * 9)
PIXELS = torch.randint(256, (16, 1, 4, 4), generator=torch.Generator().manual_seed(0)).byte()


def started(
    init: str, per_class: int, mean_of: int = 3
) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
    return starting_images(
        init, synthetic_labels(2, per_class), PIXELS, LABELS, GREY, names=("well", "ill"), mean_of=mean_of,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip


def test_noise_looks_at_no_real_image() -> None:
    images_ICHW, sources = started("noise", 2)
    assert images_ICHW.shape == (4, 1, 4, 4)
    assert sources == ((),) * 4


def test_a_mean_is_that_of_its_sources_of_its_class() -> None:
    images_ICHW, sources = started("mean", 2)
    for image, (label, rows) in enumerate(zip((0, 0, 1, 1), sources, strict=True)):
        assert len(set(rows)) == 3
        assert {int(LABELS[row]) for row in rows} == {label}
        grey = PIXELS[list(rows)].float().mean(0) / 255
        torch.testing.assert_close(images_ICHW[image], (grey - GREY.mean) / GREY.std)
    assert len({row for rows in sources for row in rows}) == 12


def test_real_images_enter_a_second_mean_only_after_as_many_as_can_have_entered_one() -> None:
    _, sources = started("mean", 5)
    of_well = sources[:5]  # seven images: two means of three, and again
    for first, second in ((of_well[0], of_well[1]), (of_well[2], of_well[3])):
        assert not set(first) & set(second)
    assert all(len(set(rows)) == 3 for rows in of_well)


@pytest.mark.parametrize(
    ("init", "per_class", "mean_of", "advice"),
    [("real", 8, 3, "8 images of well.*there are 7.*fewer images per class"),
     ("mean", 1, 8, "8 images of well.*there are 7.*smaller mean_of")],
)  # fmt: skip
def test_too_few_real_images_are_said(init: str, per_class: int, mean_of: int, advice: str) -> None:
    with pytest.raises(BadConfigError, match=advice):
        started(init, per_class, mean_of)

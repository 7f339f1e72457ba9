"""What a distillation shows on the way: its images at some steps, and the real image most like each at the end.

Shape suffixes: I distilled images, R real images, H W height width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from ppdd_core.config import Recipe
from ppdd_core.data.distilled import DistilledSet
from ppdd_core.package.previews import draw_contact_sheet, draw_image
from ppdd_core.pipeline import Images, Neighbours
from services.jobs.pictures import MOST, MOST_BYTES, Picture, Shows
from worker.context import JobContext

LONGEST_ROW = 10  # images of a class on a sheet, fewer where they would be too many bytes
MOST_CLASSES = 24  # on a sheet
SIDE = 160  # of a real image, at most
AT_ONCE = 20  # pictures of one transaction

Grey = npt.NDArray[np.uint8]


def draw_step(step: int, so_far: DistilledSet, recipe: Recipe) -> Picture:
    """Return a sheet with a row of images per class, as many as MOST_BYTES have room for."""
    grey_IHW = (so_far.grey_IHW() * 255).round().byte().numpy()
    labels = so_far.labels.tolist()
    of = recipe.distill.iterations
    for row in range(LONGEST_ROW, 0, -1):
        png = _sheet(grey_IHW, labels, so_far.classes, row, f"{step:,} / {of:,}")
        if len(png) <= MOST_BYTES:
            break
    else:
        smaller_IHW = np.stack([_at_most(image_HW, 64) for image_HW in grey_IHW])
        png = _sheet(smaller_IHW, labels, so_far.classes, 1, f"{step:,} / {of:,}")
    return Picture(Shows.STEP, step, png, caption={"iteration": step, "of": of})


def show_neighbours(job: JobContext, images: Images, made: DistilledSet, found: Neighbours) -> None:
    """Show the nearest real images; where there are more than a job may have, the most similar ones."""
    closest = sorted(range(len(found.rows)), key=lambda image: -found.ssim[image])
    chosen = sorted(closest[: MOST[Shows.NEIGHBOUR]])
    for at in range(0, len(chosen), AT_ONCE):
        some = chosen[at : at + AT_ONCE]
        job.show(*(_neighbour(image, images, made, found) for image in some))


def _neighbour(image: int, images: Images, made: DistilledSet, found: Neighbours) -> Picture:
    row, train = found.rows[image], images.split.train
    return Picture(
        Shows.NEIGHBOUR,
        image,
        draw_image(_at_most(train.pixels_RHW[row], SIDE)),
        label=train.classes[int(train.labels_R[row])],
        caption={
            "image": image,
            "ssim": found.ssim[image],
            "image_label": made.classes[int(made.labels[image])],
        },
    )


def _sheet(
    grey_IHW: Grey, labels: list[int], classes: tuple[str, ...], row: int, title: str
) -> bytes:
    shown: list[int] = []
    for label in range(min(len(classes), MOST_CLASSES)):
        shown += [image for image, of in enumerate(labels) if of == label][:row]
    names = classes[:MOST_CLASSES]
    return draw_contact_sheet(
        grey_IHW[shown], [labels[image] for image in shown], names, title=title, note=""
    )


def _at_most(grey_HW: Grey, side: int) -> Grey:
    if grey_HW.shape[-1] <= side:
        return grey_HW
    image = Image.fromarray(np.ascontiguousarray(grey_HW))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))

"""What a detector says about one uploaded image. The image is opened in memory only, and decoded in a limited child.

Deleting its bytes is the API's reconciler's: the key goes with the end of the job, whatever this process lives to do.
"""

from __future__ import annotations

from ppdd_core.data.decoding import decode_all
from ppdd_core.data.images import Decoded
from ppdd_core.data.names import shown
from ppdd_core.detector.use import USE
from ppdd_core.errors import BadImageError
from services.detectors.sealing import unseal
from worker.context import JobContext, Outcome
from worker.detector import answer, fetch_detector

# By what the sender said it is: messages name the image so, and DICOM without preamble is told by its suffix.
NAMES = {
    "image/png": "image.png",
    "image/jpeg": "image.jpg",
    "application/dicom": "image.dcm",
}
DIGITS = 6


class ImageGoneError(BadImageError):
    """The image was not kept."""


def run(job: JobContext) -> Outcome:
    """Return the probability of every class; an image that cannot be read raises BadImageError."""
    row, detector = fetch_detector(job)
    image = _decode(job, detector.image_size)
    (shares,) = detector.probabilities(image.pixels_SS[None])
    probabilities = {
        name: round(float(share), DIGITS)
        for name, share in zip(detector.classes, shares, strict=True)
    }
    return Outcome(answer(row, {"probabilities": probabilities, "use": USE}))


def _decode(job: JobContext, image_size: int) -> Decoded:
    spec, key = job.job.spec, job.credential()
    if key is None:
        raise ImageGoneError("an image is not kept after its job; send it again")
    data = unseal(key, job.resources.store.read(spec["image_sha256"]))
    name = NAMES[spec["media_type"]]
    ((_, outcome),) = decode_all([name], lambda _: data, image_size=image_size, processes=1)
    if isinstance(outcome, BadImageError):
        raise BadImageError(_said(str(outcome), name)) from None
    return outcome


def _said(reason: str, name: str) -> str:
    """Return why the image cannot be read, without the decoder's own words: they may quote what a file holds."""
    return f"the image {reason.removeprefix(shown(name)).partition(': ')[0].strip()}"

"""Uploaded images on their way to a prediction: sealed while they stream in, in the store while their job needs them.

What is on disk, in the store or in a backup can be read only with the key that the job holds until it ends.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import structlog
from fastapi import Request
from sqlalchemy import delete

from services.auth.principal import Principal
from services.detectors import service
from services.detectors.models import PredictionImage
from services.detectors.sealing import PIECE, TAG, Sealer, new_key
from services.detectors.service import StoredImage
from services.jobs.models import Job
from services.kit.errors import ServiceError, UnprocessableError
from services.kit.holds import holding
from services.kit.limits import IMAGES
from services.kit.resources import Resources
from services.kit.spool import spooled
from services.kit.storage import Spooled, StoreError

log = structlog.get_logger(__name__)


class NotAnImageError(ServiceError):
    """The body is of another type than the images that can be read."""

    status, slug, title = 415, "not-an-image", "This is no image that can be read"


class SealedBody:
    """A request's body as a stream of sealed bytes, under a key made for it."""

    def __init__(self, request: Request) -> None:
        self.key, self.size = new_key(), 0
        self._request, self._sealer = request, Sealer(self.key)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield what is sealed after every chunk that came, then the rest."""
        async for chunk in self._request.stream():
            self.size += len(chunk)
            yield self._sealer.add(chunk)
        yield self._sealer.finish()


@asynccontextmanager
async def sealed_image(
    request: Request, resources: Resources
) -> AsyncIterator[tuple[Spooled, StoredImage]]:
    """Yield the body of a request as a sealed file, removed when the block ends, and what is known of the image.

    NotAnImageError for another media type, UnprocessableError for an empty body; more bytes than an image may have are
    refused as they are counted.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in IMAGES:
        raise NotAnImageError(
            f"send the image itself as the body, with its Content-Type: {', '.join(sorted(IMAGES))}"
        )
    limit, body = resources.settings.limits.image_bytes, SealedBody(request)
    most = limit + TAG * (limit // PIECE + 1)
    async with spooled(body, resources.settings, limit=most, declared=None, sha256=None) as file:
        if body.size == 0:
            raise UnprocessableError("the body is empty; send the image itself as the body")
        yield file, StoredImage(file.sha256, body.key, body.size, media_type)


def start_prediction(
    resources: Resources, principal: Principal, detector_id: UUID, file: Spooled, image: StoredImage
) -> Job:
    """Store a sealed image, queue its prediction and return the job. Takes transactions of its own."""
    with holding(resources.sessions, [image.sha256]):
        resources.store.put_file(file.path, image.sha256)
        with resources.transaction() as session:
            return service.predict(
                session, resources.settings.jobs, resources.vault, principal, detector_id, image
            )


def keep_dropping(resources: Resources, stop: threading.Event) -> None:
    """Drop images at once and then every `jobs.sweep_seconds`, until `stop` is set; an outage is logged once."""
    outage = ""
    while True:
        try:
            drop_images(resources)
            outage = ""
        except Exception as error:
            if outage != type(error).__name__:
                outage = type(error).__name__
                log.exception("images.failed", error=outage)
        if stop.wait(resources.settings.jobs.sweep_seconds):
            return


def drop_images(resources: Resources) -> int:
    """Delete the images whose jobs have ended, however they ended; return how many those were.

    Nobody can read them any more, because their keys went with the end of their jobs. A store that does not answer
    leaves the rest for the next time.
    """
    with resources.reading() as session:
        left = [(one.job_id, one.sha256) for one in service.images_left(session)]
    dropped = 0
    for job_id, sha256 in left:
        try:
            resources.store.delete(sha256)
        except StoreError as error:
            log.warning("image.kept", job_id=str(job_id), slug=error.slug)
            break
        with resources.transaction() as session:
            session.execute(delete(PredictionImage).where(PredictionImage.job_id == job_id))
        dropped += 1
    return dropped

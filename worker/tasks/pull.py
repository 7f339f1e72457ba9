"""Pulling one version from another hospital's node: fetched with resume, verified whole, then held in the catalogue."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy.orm import Session

from services.catalogue import service as catalogue
from services.catalogue.models import Origin
from services.kit.db import now
from services.kit.errors import ConflictError
from services.peers import client
from services.peers.address import parse_node_url
from worker.context import JobContext, Outcome
from worker.room import require_room

COPIES = 4  # the archive as it arrives, the one made from its files, those files, the largest of them on its way


class TokenGoneError(ConflictError):
    """The pull's token was forgotten when the job ended."""

    slug, title = "token-gone", "The token of this pull is gone"


def run(job: JobContext) -> Outcome:
    """Pull what the job names; a later attempt goes on after the bytes that this one leaves in the job's folder."""
    spec = job.job.spec
    settings = job.resources.settings
    token = job.credential()
    if token is None:
        raise TokenGoneError(
            "a token is kept only until its pull ends; ask for a new pull, with the token"
        )
    site, name, version, key = spec["site"], spec["name"], spec["version"], spec["key"]
    title = f"{site}/{name}@{version}"
    url = parse_node_url(spec["url"], settings.pull)
    with client.reach(url, settings.pull) as peer:
        client.require_key(peer, site, key)
        offer = peer.offer(site, name, version, token)
        client.require_size(offer, settings.limits.package_bytes)
        part = _part(job.folder, offer)
        require_room(job.resources, COPIES * offer.archive_size)
        job.log(f"{title}: {offer.archive_size:,} bytes at {url}")
        peer.fetch_archive(
            offer, token, part, lambda done, total: job.progress("bytes", done, total)
        )
    archive = _named(part)
    job.progress("verify", 0, 1)
    stored = catalogue.store_package(
        job.resources, archive, key=key, today=now().date(), name=title, expected=title
    )
    job.progress("verify", 1, 1)
    job.log(f"{title}: verified, signed by key {stored.key}")

    def record(session: Session) -> None:
        catalogue.add_version(
            session, stored, origin=Origin.PULLED, owner_id=job.job.owner_id, job_id=job.job.id, origin_url=str(url)
        )  # fmt: skip

    return Outcome(
        result={
            "package": stored.title,
            "digest": stored.digest,
            "archive_sha256": stored.archive_sha256,
            "archive_size": stored.archive_size,
            "verdict": stored.verdict,
        },
        record=record,
    )


def _part(folder: Path, offer: client.Offer) -> Path:
    """Return where the archive arrives, named by its digest so that no other is gone on with."""
    part = folder / f"{offer.archive_sha256}.part"
    if part.with_suffix(".zip").exists():  # an earlier attempt had it whole
        part.with_suffix(".zip").replace(part)
    return part


def _named(part: Path) -> Path:
    """Give the whole and checked file its name, in one step that survives a power cut."""
    archive = part.with_suffix(".zip")
    part.replace(archive)
    descriptor = os.open(part.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return archive

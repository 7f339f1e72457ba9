"""The task that predicts: as the library does, from an image that is opened in memory only."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from ppdd_core.detector.predict import predict_files
from ppdd_core.detector.store import load_detector
from ppdd_core.detector.use import DESCRIPTION, USE, WEIGHTS
from services.auth.principal import Principal
from services.detectors import service
from services.detectors.models import Detector
from services.detectors.sealing import Sealer, new_key
from services.detectors.service import StoredImage
from services.jobs import service as jobs
from services.jobs.models import Job
from services.kit.resources import Resources
from tests.services.datasets.images import picture
from tests.services.detectors.making import PACKAGE, attempt


def queue(
    resources: Resources,
    owner: Principal,
    detector: Detector,
    image: bytes,
    media_type: str = "image/png",
) -> Job:
    """Seal and store an image and queue its prediction."""
    key = new_key()
    sealer = Sealer(key)
    sealed = sealer.add(image) + sealer.finish()
    stored = StoredImage(resources.store.put(sealed), key, len(image), media_type)
    with resources.transaction() as session:
        return service.predict(
            session, resources.settings.jobs, resources.vault, owner, detector.id, stored
        )


def test_it_says_what_the_library_says(
    resources: Resources, researcher: Principal, ready: Detector, tmp_path: Path
) -> None:
    for name, sha256 in ((DESCRIPTION, ready.description_sha256), (WEIGHTS, ready.weights_sha256)):
        assert sha256 is not None
        resources.store.fetch(sha256, tmp_path / name)
    (tmp_path / "image.png").write_bytes(picture(5, side=64))
    (expected,) = predict_files(load_detector(tmp_path), [tmp_path / "image.png"])

    job = attempt(resources, queue(resources, researcher, ready, picture(5, side=64)).id)

    assert job.state == "succeeded", job.error
    result = job.result or {}
    assert expected.probabilities is not None
    np.testing.assert_allclose(
        list(result["probabilities"].values()), expected.probabilities, atol=1e-6
    )
    assert (result["detector"], result["packages"], result["use"]) == ("ready", [PACKAGE], USE)
    assert job.sealed is None


def test_the_image_touches_no_disk_in_the_clear(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    image = picture(5, side=64)
    job = queue(resources, researcher, ready, image)

    attempt(resources, job.id)

    part = image[200:240]
    files = [path for path in resources.settings.data_dir.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if part in path.read_bytes()] == []
    assert hashlib.sha256(image).hexdigest() not in str(job.spec)


def test_the_reason_for_a_refusal_quotes_nothing_of_the_file(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    image = bytes(128) + b"DICM" + b"Mustermann^Erika" * 20

    job = attempt(resources, queue(resources, researcher, ready, image, "application/dicom").id)

    assert job.state == "failed"
    assert (job.error or {})["slug"] == "bad-source"
    assert "Mustermann" not in str(job.error)
    assert (job.error or {})["detail"].startswith("the image ")


def test_an_image_that_was_altered_in_the_store_is_refused(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    job = queue(resources, researcher, ready, picture(5))
    other = resources.store.put(b"x" * 100)
    with resources.transaction() as session:
        row = session.get_one(Job, job.id)
        row.spec = {**row.spec, "image_sha256": other}

    done = attempt(resources, job.id)

    assert done.state == "failed"
    assert "altered" in (done.error or {})["detail"]


def test_without_its_key_an_image_is_gone(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    job = queue(resources, researcher, ready, picture(5))
    with resources.transaction() as session:
        session.get_one(Job, job.id).sealed = None

    done = attempt(resources, job.id)

    assert "send it again" in (done.error or {})["detail"]


def test_a_prediction_is_not_resumed(
    resources: Resources, researcher: Principal, ready: Detector
) -> None:
    job = queue(resources, researcher, ready, b"no image")
    attempt(resources, job.id)

    with pytest.raises(jobs.NotResumableError, match="send it again"), resources.transaction() as s:
        jobs.resume(s, researcher, job.id)

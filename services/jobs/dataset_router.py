"""The route under `/datasets` that makes a job: datasets lie upstream and know nothing of jobs."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import Header, Path, Response
from pydantic import BaseModel, ConfigDict, Field

from services.auth.dependencies import PrincipalDep
from services.jobs import reading, submit
from services.jobs.schemas import JobOut
from services.jobs.service import IdempotencyConflictError
from services.jobs.submit import UnusableDatasetError
from services.kit.errors import NotFoundError
from services.kit.http import FeatureRouter, SessionDep, SettingsDep
from services.kit.openapi import problem_responses

router = FeatureRouter(prefix="/datasets", tags=["jobs"])


class CheckDatasetIn(BaseModel):
    """How to look at a dataset."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"image_size": 112}]})

    image_size: int = Field(
        112, ge=8, le=512, description="Side of the squares that images become, in pixels."
    )


@router.post(
    "/{dataset_id}/check",
    summary="Check a dataset",
    status_code=202,
    responses=problem_responses(NotFoundError, IdempotencyConflictError, UnusableDatasetError),
)
def check_dataset(
    dataset_id: Annotated[UUID, Path(description="The dataset's id.")],
    principal: PrincipalDep,
    session: SessionDep,
    settings: SettingsDep,
    response: Response,
    asked: CheckDatasetIn | None = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> JobOut:
    """Let a worker read every image: counts, statistics, faults, thumbnails. The dataset is then `ready` or `faulty`.

    Finding that a dataset cannot be used is a success of this job. The same `Idempotency-Key` gives the same job.
    """
    job, _ = submit.submit_check(
        session,
        settings,
        principal,
        dataset_id,
        image_size=(asked or CheckDatasetIn()).image_size,
        idempotency_key=idempotency_key,
    )
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of_detail(reading.describe(session, job))

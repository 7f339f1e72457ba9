"""Routes under `/packages`."""

from fastapi import APIRouter

router = APIRouter(prefix="/packages", tags=["packages"])

"""Routes under `/detectors`."""

from fastapi import APIRouter

router = APIRouter(prefix="/detectors", tags=["detectors"])

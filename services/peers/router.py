"""Routes under `/pulls`."""

from fastapi import APIRouter

router = APIRouter(prefix="/pulls", tags=["pulls"])

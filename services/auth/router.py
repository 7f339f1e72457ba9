"""Routes under ``."""

from fastapi import APIRouter

router = APIRouter(prefix="", tags=["sessions"])

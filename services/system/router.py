"""Routes of the node itself."""

from fastapi import APIRouter

router = APIRouter(prefix="/system", tags=["system"])
public = APIRouter(tags=["system"])


@router.get("/live", summary="Is the process alive?")
def live() -> dict[str, str]:
    """Answer without touching anything."""
    return {"status": "alive"}

"""Which object store a node has, by its settings."""

from __future__ import annotations

from services.kit.folder_store import FolderStore
from services.kit.storage import ObjectStore
from services.settings import Settings


def open_store(settings: Settings) -> ObjectStore:
    """Return the node's store. Nothing is touched yet: a store that is away is found out when it is used."""
    if settings.store.kind == "folder":
        return FolderStore(settings.data_dir / "objects")
    from services.kit.minio_store import MinioStore  # an embedded node need not load the SDK

    return MinioStore(settings.store)

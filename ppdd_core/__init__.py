"""PPDD: distil chest X-rays into a few measured, signed, synthetic images, and train detectors from them.

The public names load on first use, so that importing this package never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppdd_core.config import Recipe
    from ppdd_core.data.distilled import DistilledSet, Normalisation
    from ppdd_core.errors import PackageError, PpddError
    from ppdd_core.package.load import load_package
    from ppdd_core.package.manifest import Manifest
    from ppdd_core.package.verify import Verification, verify_package

__version__ = "0.1.0"

__all__ = [
    "DistilledSet",
    "Manifest",
    "Normalisation",
    "PackageError",
    "PpddError",
    "Recipe",
    "Verification",
    "__version__",
    "load_package",
    "verify_package",
]

_HOMES = {
    "DistilledSet": "data.distilled",
    "Manifest": "package.manifest",
    "Normalisation": "data.distilled",
    "PackageError": "errors",
    "PpddError": "errors",
    "Recipe": "config",
    "Verification": "package.verify",
    "load_package": "package.load",
    "verify_package": "package.verify",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

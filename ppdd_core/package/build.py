"""A distilled set and its reports become a package: signed, complete, or not there at all.

Reads the tensors of a `DistilledSet` but imports no torch. The same content and key give the same bytes, in
the folder and in the archive. Nothing is written that `verify` would not accept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ppdd_core.config import Recipe
from ppdd_core.errors import PackageError
from ppdd_core.package import canonical, card, croissant, manifest, previews
from ppdd_core.package.archive import write_archive, write_folder
from ppdd_core.package.manifest import Dtype, FileEntry, Manifest, Usage, source_summary
from ppdd_core.package.signature import fingerprint, sign
from ppdd_core.package.tensors import read_tensors, to_grey_IHW, write_tensors
from ppdd_core.package.verify import open_verified, refusal, verify_files

if TYPE_CHECKING:
    from ppdd_core.data.distilled import DistilledSet

__all__ = [
    "PackageContent",
    "Usage",
    "build_files",
    "export_archive",
    "source_summary",
    "write_package",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageContent:
    """Everything that goes into a package, except the key."""

    name: str  # site/name
    version: str
    site_id: str
    site_name: str
    created: str  # UTC, YYYY-MM-DDTHH:MM:SSZ
    distilled: DistilledSet
    recipe: Recipe
    source: Mapping[str, Any]  # see source_summary
    evaluation: Mapping[str, Any]
    privacy: Mapping[str, Any]
    usage: Usage
    software: Mapping[str, str]  # program: version, ppdd among them
    dtype: Dtype = "float32"


def write_package(folder: Path, content: PackageContent, key: Ed25519PrivateKey) -> Manifest:
    """Write the signed package as `folder`, which appears complete or not at all; return its manifest.

    Writing the same content again changes nothing. PackageError where the content would not verify (its
    message names the faults) or where `folder` holds something else; BadManifestError carries every problem.
    """
    files = build_files(content, key)
    write_folder(files, folder)
    return manifest.read(files[manifest.MANIFEST])


def export_archive(folder: Path, archive: Path, *, trusted_key: str | None = None) -> Manifest:
    """Write the package in `folder` as one ZIP, if nothing is wrong with it; return its manifest."""
    package = open_verified(folder, trusted_key=trusted_key)
    write_archive(package.files, archive)
    return package.manifest


def build_files(content: PackageContent, key: Ed25519PrivateKey) -> dict[str, bytes]:
    """Return the package's files by path; refused as in `write_package`."""
    _check_agreement(content)
    data = write_tensors(content.distilled, content.dtype)
    arrays = read_tensors(data)
    labels = [int(label) for label in arrays.label_of_image_I]
    classes = content.distilled.classes
    normalisation = content.distilled.normalisation
    grey_IHW = to_grey_IHW(arrays.images_ICHW, mean=normalisation.mean, std=normalisation.std)
    files = {
        manifest.TENSORS: data,
        manifest.EVALUATION: canonical.dump(content.evaluation),
        manifest.PRIVACY: canonical.dump(content.privacy),
        manifest.CONTACT_SHEET: previews.draw_contact_sheet(
            grey_IHW,
            labels,
            classes,
            title=f"{content.name} {content.version}",
            note=f"Synthetic images distilled by {content.site_name}. For research only, not for clinical decisions.",
        ),
    }
    for index, grey_HW in enumerate(grey_IHW):
        files[manifest.preview_path(index)] = previews.draw_image(grey_HW)
    later = {manifest.CROISSANT: b"", manifest.CARD: b""}
    draft = _manifest(content, {**files, **later}, arrays.learning_rate, fingerprint(key), labels)
    draft.to_bytes()  # card and Croissant are written from a manifest that holds
    files[manifest.CROISSANT] = canonical.dump(croissant.describe(draft, labels))
    files[manifest.CARD] = card.write_card(
        draft, evaluation=content.evaluation, privacy=content.privacy
    ).encode()
    stated = _manifest(content, files, arrays.learning_rate, fingerprint(key), labels).to_bytes()
    files[manifest.MANIFEST] = stated
    files[manifest.SIGNATURE] = sign(stated, key)
    found = verify_files(files)
    if not found.ok:
        raise refusal(found, content.name)
    return files


def _check_agreement(content: PackageContent) -> None:
    distilled, recipe = content.distilled, content.recipe
    pairs = {
        "network": (distilled.net, recipe.net),
        "augmentation": (distilled.augment, recipe.distill.augment),
        "image size": (distilled.image_size, recipe.image_size),
    }
    for name, (made, stated) in pairs.items():
        if made != stated:
            raise PackageError(
                f"the distilled set was made with {name} {made!r}, its recipe says {stated!r}"
            )
    count = recipe.distill.images_per_class * len(distilled.classes)
    if len(distilled) != count or distilled.labels.shape[0] != count:
        raise PackageError(
            f"the distilled set has {len(distilled)} images, its recipe says {count}"
        )
    labels = np.asarray(distilled.labels.detach().cpu().numpy())
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= len(distilled.classes)):
        raise PackageError(f"labels must be from 0 to {len(distilled.classes) - 1}")


def _manifest(
    content: PackageContent, files: Mapping[str, bytes], rate: float, key: str, labels: list[int]
) -> Manifest:
    distilled = content.distilled
    channels, height, width = distilled.images.shape[1:]
    kinds = manifest.media_types(len(labels))
    return Manifest(
        name=content.name,
        version=content.version,
        site_id=content.site_id,
        site_name=content.site_name,
        key=key,
        created=content.created,
        classes=distilled.classes,
        images_per_class=content.recipe.distill.images_per_class,
        image_shape=(channels, height, width),
        dtype=content.dtype,
        label_kind="hard" if distilled.labels.ndim == 1 else "soft",
        mean=distilled.normalisation.mean,
        std=distilled.normalisation.std,
        learning_rate=rate,
        recipe=content.recipe.to_dict(),
        source=content.source,
        software=content.software,
        usage=content.usage,
        files={
            path: FileEntry(
                sha256=hashlib.sha256(data).hexdigest(), size=len(data), media_type=kinds[path]
            )
            for path, data in files.items()
        },
    )

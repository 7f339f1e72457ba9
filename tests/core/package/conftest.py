"""A small package made in the test, and a dishonest site that signs whatever it likes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ppdd_core.config import DistillConfig, NetConfig, Recipe
from ppdd_core.data.distilled import DistilledSet, Normalisation
from ppdd_core.package import canonical
from ppdd_core.package.build import PackageContent, Usage, build_files, source_summary
from ppdd_core.package.manifest import MANIFEST, SIGNATURE
from ppdd_core.package.signature import fingerprint, sign

CLASSES = ("COVID", "Lung_Opacity", "Normal")
SIZE, PER_CLASS = 16, 2


def result_row(seed: int, right: int) -> dict[str, Any]:
    share = right / 60
    return {
        "method": "distilled",
        "architecture": "convnet",
        "images_per_class": PER_CLASS,
        "seed": seed,
        "learning_rate": 0.01,
        "accuracy": share,
        "accuracy_interval": [share - 0.1, share + 0.1],
        "balanced_accuracy": share,
        "macro_auroc": 0.8,
        "calibration_error": 0.05,
        "per_class": [
            {
                "class": name,
                "sensitivity": 0.7,
                "sensitivity_interval": [0.5, 0.8],
                "specificity": 0.9,
                "specificity_interval": [0.8, 0.95],
                "images": 20,
            }
            for name in CLASSES
        ],
        "confusion": [[right - 20, 60 - right, 0], [0, 10, 0], [0, 0, 10]],
    }


def make_content() -> PackageContent:
    net = NetConfig(width=8, depth=2)
    recipe = Recipe(
        preset="quick",
        image_size=SIZE,
        net=net,
        distill=DistillConfig(images_per_class=PER_CLASS),
    )
    generator = torch.Generator().manual_seed(7)
    count = PER_CLASS * len(CLASSES)
    distilled = DistilledSet(
        images=torch.randn(count, 1, SIZE, SIZE, generator=generator),
        labels=torch.arange(len(CLASSES)).repeat_interleave(PER_CLASS),
        learning_rate=0.0123,
        classes=CLASSES,
        normalisation=Normalisation(0.5, 0.25),
        net=net,
        augment=recipe.distill.augment,
    )
    results = [result_row(0, 45), result_row(1, 48)]
    spread = {"mean": 46.5 / 60, "sd": 0.0354}
    return PackageContent(
        name="hospital-a/cxr",
        version="1.0.0",
        site_id="hospital-a",
        site_name="Hospital A",
        created="2026-11-22T08:00:00Z",
        distilled=distilled,
        recipe=recipe,
        source=source_summary({"COVID": 1234, "Lung_Opacity": 12, "Normal": 0}, 20),
        evaluation={
            "format_version": 1,
            "split": "test",
            "images": 60,
            "classes": list(CLASSES),
            "protocol": {},
            "results": results,
            "summary": [
                {
                    "method": "distilled",
                    "architecture": "convnet",
                    "images_per_class": PER_CLASS,
                    "networks": 2,
                    "accuracy": spread,
                    "balanced_accuracy": spread,
                    "macro_auroc": {"mean": 0.8, "sd": 0.0},
                    "calibration_error": {"mean": 0.05, "sd": 0.0},
                }
            ],
        },
        privacy={
            "format_version": 1,
            "verdict": "passed",
            "reasons": [],
            "thresholds": {"max_membership_auc": 0.6},
            "initialisation": "noise",
            "measurements": [
                {
                    "name": "membership_inference_auc",
                    "title": "Membership inference, AUC",
                    "value": 0.52,
                    "interval": [0.48, 0.56],
                    "threshold": 0.6,
                    "passed": True,
                    "method": "loss threshold",
                    "does_not_show": "what a stronger attack finds",
                    "details": {},
                }
            ],
        },
        usage=Usage(
            licence="CC-BY-NC-4.0",
            purposes=("DUO:0000042", "DUO:0000046"),
            terms_sha256="ab" * 32,
            expires="2027-12-31",
        ),
        software={"ppdd": "0.1.0", "python": "3.11.7"},
    )


def resign(
    files: Mapping[str, bytes],
    key: Ed25519PrivateKey,
    edit: Callable[[dict[str, Any]], object] | None = None,
) -> dict[str, bytes]:
    """Return the files with a manifest that fits their bytes, edited, and signed by `key`.

    This is what a site can do that holds a valid key and means harm.
    """
    value = canonical.parse(files[MANIFEST], name=MANIFEST)
    value["site"]["key"] = fingerprint(key)
    for path, entry in value["files"].items():
        if path in files:
            data = files[path]
            entry.update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    if edit is not None:
        edit(value)
    data = canonical.dump(value)
    return {**files, MANIFEST: data, SIGNATURE: sign(data, key)}


@pytest.fixture(scope="session")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(b"k" * 32)


@pytest.fixture(scope="session")
def other_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(b"o" * 32)


@pytest.fixture(scope="session")
def content() -> PackageContent:
    return make_content()


@pytest.fixture(scope="session")
def built(content: PackageContent, key: Ed25519PrivateKey) -> Mapping[str, bytes]:
    return build_files(content, key)


@pytest.fixture
def files(built: Mapping[str, bytes]) -> dict[str, bytes]:
    return dict(built)


@pytest.fixture
def soft_content(content: PackageContent) -> PackageContent:
    labels = torch.full((PER_CLASS * len(CLASSES), len(CLASSES)), 0.1)
    labels[torch.arange(len(labels)), content.distilled.labels] = 0.8
    return dataclasses.replace(
        content, distilled=dataclasses.replace(content.distilled, labels=labels)
    )


@pytest.fixture(scope="session")
def forge() -> Callable[..., dict[str, bytes]]:
    return resign

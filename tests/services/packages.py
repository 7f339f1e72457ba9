"""Small real packages for tests of the node: built, signed and verifiable, without a distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ppdd_core.config import DistillConfig, NetConfig, PrivacyConfig, Recipe
from ppdd_core.package.archive import write_archive
from ppdd_core.package.build import PackageContent, Usage, build_files, source_summary
from ppdd_core.privacy.report import Measurement, PrivacyReport, judge
from ppdd_core.privacy.wording import WORDS
from services.catalogue import service as catalogue
from services.catalogue.models import Origin, PackageVersion
from services.kit.resources import Resources
from services.settings import Settings

CLASSES = ("COVID", "Lung_Opacity", "Normal")
SIZE, PER_CLASS = 16, 2
LENIENT = PrivacyConfig(max_membership_auc=0.99)


def key_of(seed: str) -> Ed25519PrivateKey:
    """Return the signing key of a pretended hospital."""
    return Ed25519PrivateKey.from_private_bytes(seed.encode().ljust(32, b".")[:32])


@cache
def package_files(
    site: str,
    name: str = "cxr",
    version: str = "1.0.0",
    *,
    seed: str | None = None,
    auc: float = 0.52,
    policy: PrivacyConfig | None = None,
    classes: tuple[str, ...] = CLASSES,
    expires: str | None = "2099-12-31",
    site_name: str = "",
    licence: str = "CC-BY-NC-4.0",
    curves: bool = False,
) -> Mapping[str, bytes]:
    """Return the files of a package; `seed` names the key, by default the site's own pretended one.

    With `curves` its evaluation has a confusion matrix and ROC curves.
    """
    content = _content(site, name, version, classes)
    content = dataclasses.replace(
        content,
        site_name=site_name or content.site_name,
        evaluation=_with_curves(content.evaluation) if curves else content.evaluation,
        privacy=privacy_report(auc, policy or PrivacyConfig()),
        usage=Usage(licence=licence, purposes=("DUO:0000042",), expires=expires),
    )
    return build_files(content, key_of(seed or site))


def give_key(settings: Settings, seed: str | None = None) -> None:
    """Let the node sign with the key that `package_files` pretends its site has."""
    path = settings.signing_key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        key_of(seed or settings.site_id).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
    )
    path.chmod(0o600)


def write_package(folder: Path, files: Mapping[str, bytes], name: str = "package.zip") -> Path:
    """Write the files as an archive in `folder` and return its path."""
    path = folder / name
    write_archive(files, path)
    return path


def privacy_report(auc: float, policy: PrivacyConfig) -> dict[str, Any]:
    """Return a whole report in which everything is harmless but membership inference, whose AUC is given."""
    values: dict[str, float] = dict.fromkeys(WORDS, 0.5)
    values |= {"near_copies": 0, "membership_inference_auc": auc, "smallest_class": 400}
    values |= {"membership_inference_tpr_at_1_fpr": 0.01}
    made = tuple(
        judge(
            Measurement(
                name=name,
                title=words.title,
                value=values[name],
                method=words.method,
                does_not_show=words.does_not_show,
                details={"best_ssim": [0.3, 0.4]} if name == "near_copies" else {},
            ),
            policy,
        )
        for name, words in WORDS.items()
    )
    return PrivacyReport(thresholds=policy, initialisation="noise", measurements=made).to_dict()


def add_package(
    resources: Resources, folder: Path, files: Mapping[str, bytes], origin: Origin = Origin.MADE
) -> PackageVersion:
    """Store a package and add its version, as a job or an import would."""
    path = write_package(folder, files)
    stored = catalogue.store_package(resources, path)
    path.unlink()
    with resources.transaction() as session:
        return catalogue.add_version(session, stored, origin=origin, owner_id=None)


def _content(site: str, name: str, version: str, classes: tuple[str, ...]) -> PackageContent:
    import torch

    from ppdd_core.data.distilled import DistilledSet, Normalisation

    net = NetConfig(width=8, depth=2)
    recipe = Recipe(
        preset="quick",
        image_size=SIZE,
        net=net,
        distill=DistillConfig(images_per_class=PER_CLASS),
    )
    generator = torch.Generator().manual_seed(7)
    count = PER_CLASS * len(classes)
    distilled = DistilledSet(
        images=torch.randn(count, 1, SIZE, SIZE, generator=generator),
        labels=torch.arange(len(classes)).repeat_interleave(PER_CLASS),
        learning_rate=0.0123,
        classes=classes,
        normalisation=Normalisation(0.5, 0.25),
        net=net,
        augment=recipe.distill.augment,
    )
    return PackageContent(
        name=f"{site}/{name}",
        version=version,
        site_id=site,
        site_name=site.replace("-", " ").title(),
        created="2026-11-22T08:00:00Z",
        distilled=distilled,
        recipe=recipe,
        source=source_summary(dict.fromkeys(classes, 1234), 20),
        evaluation=_evaluation(classes),
        privacy={},
        usage=Usage(licence="CC-BY-NC-4.0", purposes=("DUO:0000042",)),
        software={"ppdd": "0.1.0"},
    )


def _evaluation(classes: tuple[str, ...]) -> dict[str, Any]:
    shares = {
        "accuracy": 0.75,
        "balanced_accuracy": 0.75,
        "macro_auroc": 0.8,
        "calibration_error": 0.05,
    }
    row = {"method": "distilled", "architecture": "convnet", "images_per_class": PER_CLASS}
    per_class = [
        {"class": label, "sensitivity": 0.7, "specificity": 0.9, "images": 20} for label in classes
    ]
    result = {
        **row,
        **shares,
        "seed": 0,
        "learning_rate": 0.01,
        "accuracy_interval": [0.65, 0.85],
        "per_class": per_class,
        "confusion": None,
    }
    summary = {**row, "networks": 1, **{name: {"mean": v, "sd": 0.0} for name, v in shares.items()}}
    return {
        "format_version": 1,
        "split": "test",
        "images": 60,
        "classes": list(classes),
        "protocol": {},
        "results": [result],
        "summary": [summary],
    }


def _with_curves(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluation as it is recorded today."""
    (result,) = evaluation["results"]
    classes = len(evaluation["classes"])
    curve = {"auroc": 0.875, "roc": [min(1.0, 0.5 + step / 50) for step in range(51)]}
    counts = [
        [15 if down == across else (5 if across == (down + 1) % classes else 0) for across in range(classes)]
        for down in range(classes)
    ]  # fmt: skip
    whole = {**result, "confusion": counts}
    whole["per_class"] = [
        {**row, **curve, "sensitivity_interval": [0.5, 0.85], "specificity_interval": [0.8, 0.95]}
        for row in result["per_class"]
    ]
    return {**evaluation, "results": [whole]}

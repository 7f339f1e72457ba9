"""croissant.json: the package as an MLCommons Croissant 1.1 dataset, for catalogues and other tools.

Torch-free; says nothing that the manifest does not say. Data use terms stand as DUO terms under `usageInfo`,
provenance as PROV-O, following Croissant 1.1 "Responsible AI and Governance". `mlcroissant` validates the
result in the tests; it is not needed to write or to verify a package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ppdd_core.package.manifest import CONTACT_SHEET, DUO, TENSORS, Manifest, preview_path

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
_SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*[0-9][A-Za-z0-9.+-]*")

_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "duo": "http://purl.obolibrary.org/obo/DUO_",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "prov": "http://www.w3.org/ns/prov#",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def describe(manifest: Manifest, label_of_image_I: Sequence[int]) -> dict[str, Any]:
    """Return the Croissant document; `manifest.files` must hold the tensors and the previews."""
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": manifest.name,
        "version": manifest.version.split("-")[0],  # Croissant knows MAJOR.MINOR.PATCH only
        "description": _description(manifest),
        "datePublished": manifest.created,
        "creator": {
            "@type": "sc:Organization",
            "name": manifest.site_name,
            "identifier": manifest.site_id,
        },
        "license": _licence(manifest.usage.licence),
        "citeAs": f"{manifest.site_name}: {manifest.name}, version {manifest.version} ({manifest.created[:4]})",
        "url": f"urn:ppdd:package:{manifest.name.replace('/', ':')}:{manifest.version}",
        "identifier": f"{manifest.name}@{manifest.version}",
        "isLiveDataset": False,
        "keywords": ["chest X-ray", "dataset distillation", "synthetic"],
        "usageInfo": [_duo_term(code) for code in manifest.usage.purposes],
        "conditionsOfAccess": _conditions(manifest),
        "rai:dataLimitations": ["Research use only; not for clinical decisions."],
        "rai:personalSensitiveInformation": [
            "The images are synthetic but were made from images of patients. What was measured about that is in"
            " privacy.json; no measurement proves that nobody can be recognised."
        ],
        "prov:wasAttributedTo": {
            "@type": "prov:Organization",
            "prov:label": manifest.site_name,
        },
        "prov:wasDerivedFrom": {
            "@id": f"urn:ppdd:source:{manifest.name.replace('/', ':')}",
            "@type": "prov:Entity",
            "prov:label": f"Chest X-rays held by {manifest.site_name}; they never leave the site",
        },
        "prov:wasGeneratedBy": {
            "@type": "prov:Activity",
            "prov:label": "Dataset distillation by trajectory matching with parameter pruning",
            "prov:endedAtTime": manifest.created,
            "prov:wasAssociatedWith": {
                "@type": "prov:SoftwareAgent",
                "prov:label": f"ppdd {manifest.software['ppdd']}",
            },
        },
        "distribution": _distribution(manifest),
        "recordSet": _record_sets(manifest, label_of_image_I),
    }


def find_faults(value: Any, manifest: Manifest) -> list[str]:
    """Return where a parsed croissant.json contradicts the manifest, one sentence each."""
    if not isinstance(value, dict):
        return ["it is not a JSON object"]
    faults = []
    expected = {
        "conformsTo": CONFORMS_TO,
        "name": manifest.name,
        "identifier": f"{manifest.name}@{manifest.version}",
        "license": _licence(manifest.usage.licence),
        "usageInfo": [_duo_term(code) for code in manifest.usage.purposes],
    }
    for field, wanted in expected.items():
        if value.get(field) != wanted:
            faults.append(f"its {field} is not what the manifest says")
    listed = value.get("distribution")
    files = {
        entry.get("contentUrl"): entry.get("sha256")
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, dict) and isinstance(entry.get("contentUrl"), str)
    }
    wanted_files = {
        path: manifest.files[path].sha256 for path in _described(manifest) if path in manifest.files
    }
    if files != wanted_files:
        faults.append("its distribution does not list the same files and sha256 as the manifest")
    return faults


def _description(manifest: Manifest) -> str:
    return (
        f"{manifest.images} synthetic chest X-rays, {manifest.images_per_class} per class, and a learning rate,"
        f" distilled by {manifest.site_name} so that a network trained on them learns what it would learn from"
        " the real images, which stay at the site. Research use only; not for clinical decisions."
    )


def _licence(licence: str) -> str:
    return f"https://spdx.org/licenses/{licence}.html" if _SPDX.fullmatch(licence) else licence


def _duo_term(code: str) -> dict[str, str]:
    number = code.removeprefix("DUO:")
    return {
        "@type": "sc:DefinedTerm",
        "name": DUO[code],
        "termCode": f"DUO_{number}",
        "url": f"duo:{number}",
    }


def _conditions(manifest: Manifest) -> str:
    until = f" Use ends on {manifest.usage.expires}." if manifest.usage.expires else ""
    terms = manifest.usage.terms_sha256
    text = f" Terms of use: the text with sha256 {terms}." if terms else ""
    return f"By permission of {manifest.site_name}.{until}{text}"


def _described(manifest: Manifest) -> list[str]:
    return [TENSORS, CONTACT_SHEET, *(preview_path(index) for index in range(manifest.images))]


def _distribution(manifest: Manifest) -> list[Mapping[str, Any]]:
    return [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "contentUrl": path,
            "contentSize": f"{manifest.files[path].size} B",
            "encodingFormat": manifest.files[path].media_type,
            "sha256": manifest.files[path].sha256,
        }
        for path in _described(manifest)
    ]


def _record_sets(manifest: Manifest, label_of_image_I: Sequence[int]) -> list[Mapping[str, Any]]:
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "classes",
            "name": "classes",
            "description": "The classes, in the order of the labels in distilled.safetensors.",
            "dataType": "sc:Enumeration",
            "key": {"@id": "classes/name"},
            "field": [
                _field("classes/index", "Label in distilled.safetensors", "sc:Integer"),
                _field("classes/name", "Name of the class", "sc:Text"),
            ],
            "data": [
                {"classes/index": index, "classes/name": name}
                for index, name in enumerate(manifest.classes)
            ],
        },
        {
            "@type": "cr:RecordSet",
            "@id": "images",
            "name": "images",
            "description": "The synthetic images in order, each with its class and its preview.",
            "key": {"@id": "images/index"},
            "field": [
                _field("images/index", "Row in distilled.safetensors", "sc:Integer"),
                {
                    **_field(
                        "images/label", "Class; the strongest one where labels are soft", "sc:Text"
                    ),
                    "references": {"field": {"@id": "classes/name"}},
                },
                _field("images/preview", "File in the package", "sc:Text"),
            ],
            "data": [
                {
                    "images/index": index,
                    "images/label": manifest.classes[label],
                    "images/preview": preview_path(index),
                }
                for index, label in enumerate(label_of_image_I)
            ],
        },
    ]


def _field(identity: str, description: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": identity,
        "name": identity.split("/")[1],
        "description": description,
        "dataType": kind,
    }

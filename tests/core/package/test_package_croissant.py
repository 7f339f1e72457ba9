from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ppdd_core.package import croissant, manifest
from ppdd_core.package.archive import write_folder
from ppdd_core.package.manifest import CROISSANT, MANIFEST, TENSORS


@pytest.fixture
def document(built: Mapping[str, bytes]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(built[CROISSANT])
    return value


def test_mlcroissant_accepts_it_without_a_warning(
    built: Mapping[str, bytes], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rdflib and of mlcroissant's own imports
        import mlcroissant

        write_folder(built, tmp_path / "package")
        dataset = mlcroissant.Dataset(jsonld=tmp_path / "package" / CROISSANT)
        classes, images = (list(dataset.records(name)) for name in ("classes", "images"))
    issues = dataset.metadata.ctx.issues
    assert issues.errors == set() and issues.warnings == set()
    assert dataset.metadata.ctx.conforms_to.value == "http://mlcommons.org/croissant/1.1"
    assert [row["classes/name"] for row in classes] == ["COVID", "Lung_Opacity", "Normal"]
    assert [row["images/label"] for row in images] == [
        name for name in ("COVID", "Lung_Opacity", "Normal") for _ in range(2)
    ]
    assert {file.sha256 for file in dataset.metadata.file_objects} == {
        entry.sha256
        for path, entry in manifest.read(built[MANIFEST]).files.items()
        if path == TENSORS or path.startswith("previews/")
    }


def test_says_by_whom_from_what_and_for_what(document: dict[str, Any]) -> None:
    assert document["creator"]["name"] == "Hospital A"
    assert document["license"] == "https://spdx.org/licenses/CC-BY-NC-4.0.html"
    assert [term["termCode"] for term in document["usageInfo"]] == ["DUO_0000042", "DUO_0000046"]
    assert document["usageInfo"][0]["name"] == "general research use"
    assert "ends on 2027-12-31" in document["conditionsOfAccess"]
    made = document["prov:wasGeneratedBy"]
    assert made["prov:endedAtTime"] == "2026-11-22T08:00:00Z"
    assert made["prov:wasAssociatedWith"]["prov:label"] == "ppdd 0.1.0"
    assert document["prov:wasDerivedFrom"]["@id"] == "urn:ppdd:source:hospital-a:cxr"


def test_says_nothing_about_class_sizes(built: Mapping[str, bytes]) -> None:
    assert b"1230" not in built[CROISSANT] and b"1234" not in built[CROISSANT]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d.update(name="hospital-b/cxr"), id="name"),
        pytest.param(lambda d: d.update(identifier="hospital-a/cxr@9.0.0"), id="version"),
        pytest.param(lambda d: d.update(license="CC0-1.0"), id="licence"),
        pytest.param(lambda d: d.update(usageInfo=[]), id="usage"),
        pytest.param(lambda d: d.update(conformsTo="http://example.org"), id="standard"),
        pytest.param(lambda d: d["distribution"].pop(), id="file missing"),
        pytest.param(
            lambda d: d["distribution"].append({"contentUrl": "https://x", "sha256": "0"}),
            id="file elsewhere",
        ),
        pytest.param(lambda d: d.update(distribution="x"), id="distribution no list"),
        pytest.param(lambda d: d.clear(), id="empty"),
    ],
)
def test_finds_where_it_contradicts_the_manifest(
    built: Mapping[str, bytes],
    document: dict[str, Any],
    change: Callable[[dict[str, Any]], object],
) -> None:
    stated = manifest.read(built[MANIFEST])
    assert croissant.find_faults(document, stated) == []
    change(document)
    assert croissant.find_faults(document, stated) != []


def test_a_list_is_no_description(built: Mapping[str, bytes]) -> None:
    assert croissant.find_faults([], manifest.read(built[MANIFEST])) == ["it is not a JSON object"]

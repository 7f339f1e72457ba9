from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from ppdd_core.errors import BadManifestError
from ppdd_core.package import canonical, manifest
from ppdd_core.package.manifest import MANIFEST, source_summary


@pytest.fixture
def value(built: Mapping[str, bytes]) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(built[MANIFEST])
    return parsed


def test_reads_back_what_it_writes(built: Mapping[str, bytes]) -> None:
    stated = manifest.read(built[MANIFEST])
    assert stated.to_bytes() == built[MANIFEST]
    assert stated.name == "hospital-a/cxr" and stated.images == 6
    assert stated.learning_rate == pytest.approx(0.0123)


def test_the_same_document_in_other_words_is_not_canonical(value: dict[str, Any]) -> None:
    for text in (json.dumps(value), json.dumps(value, sort_keys=True, separators=(",", ": "))):
        with pytest.raises(BadManifestError, match="canonical"):
            manifest.read(text.encode())


def put(path: str, new: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        *groups, leaf = path.split("/")
        for group in groups:
            value = value[group]
        value[leaf] = new

    return change


def remove(path: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        *groups, leaf = path.split("/")
        for group in groups:
            value = value[group]
        del value[leaf]

    return change


ENTRY = {"sha256": "0" * 64, "size": 1, "media_type": "text/plain"}
FAULTS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (put("format_version", 2), "format_version must be 1"),
    (put("surprise", 1), "unknown field 'surprise'"),
    (remove("version"), "lacks the field version"),
    (remove("site"), "lacks the field site"),
    (put("site/city", "X"), "site has the unknown field"),
    (put("site", []), "site must be an object"),
    (put("name", "Hospital-A/cxr"), "name must be"),
    (put("name", "hospital-a"), "name must be"),
    (put("name", "hospital-a/../cxr"), "name must be"),
    (put("name", "hospital-b/cxr"), "but site.id is"),
    (put("site/id", "-a"), "site.id must be"),
    (put("site/id", "a" * 65), "site.id must be"),
    (put("site/name", ""), "site.name must be"),
    (put("site/name", "A\nB"), "without control"),
    (put("site/name", "A\u202eB"), "without control"),
    (put("site/name", "e\u0301"), "Unicode NFC"),
    (put("site/name", " A"), "spaces at its ends"),
    (put("site/key", "ABC"), "site.key must be"),
    (put("version", "1.0"), "version must be"),
    (put("version", "01.0.0"), "version must be"),
    (put("version", "1.0.0+build"), "version must be"),
    (put("version", "latest"), "version must be"),
    (put("created", "2026-11-22 08:00"), "created must be"),
    (put("created", "2026-02-30T08:00:00Z"), "created must be"),
    (put("created", "2026-11-22T08:00:00+01:00"), "created must be"),
    (put("classes", ["one"]), "2 to 1000"),
    (put("classes", ["a", "a", "b"]), "differ in more than"),
    (put("classes", ["COVID", "covid", "b"]), "upper and lower case"),
    (put("classes", ["a", 1, "b"]), "classes[1] must be"),
    (put("classes", [f"c{n}" for n in range(1001)]), "2 to 1000"),
    (put("images/per_class", 0), "images.per_class must be"),
    (put("images/per_class", 5000), "images.per_class times classes"),
    (put("images/per_class", True), "images.per_class must be"),
    (put("images/per_class", 3), "recipe.distill.images_per_class is 2"),
    (put("images/shape", [1, 16]), "images.shape must be"),
    (put("images/shape", [1, 16, 17]), "square"),
    (put("images/shape", [2, 16, 16]), "1 or 3 channels"),
    (put("images/shape", [1, 4096, 4096]), "8 to 512"),
    (put("images/shape", [1, 32, 32]), "recipe.image_size is 16"),
    (put("images/dtype", "float64"), "images.dtype must be"),
    (put("images/labels", "fuzzy"), "images.labels must be"),
    (put("normalisation/mean", 120.5), "normalisation.mean"),
    (put("normalisation/std", 0), "normalisation.std"),
    (put("normalisation/value_range", [0, 255]), "value_range must be [0, 1]"),
    (put("learning_rate", 0), "learning_rate must be"),
    (put("learning_rate", -0.1), "learning_rate must be"),
    (put("learning_rate", 1e9), "learning_rate must be"),
    (put("learning_rate", "0.01"), "learning_rate must be"),
    (put("learning_rate", None), "learning_rate must be"),
    (put("recipe", "paper"), "recipe: "),
    (put("recipe/net/architecture", "transformer"), "net.architecture"),
    (put("recipe/net/width", 10**9), "net.width"),
    (put("recipe/detector/epochs", 10**9), "detector.epochs must be at most"),
    (put("recipe/hook", "import os"), "unknown recipe field"),
    (put("recipe/distill/prune_below", 2), "prune_below"),
    (put("source/classes/COVID", 1234), "rounded down"),
    (put("source/classes/Normal", 10), "suppressed"),
    (put("source/classes/Normal", 0), "suppressed"),
    (put("source/classes/Other", None), "same classes"),
    (put("source/rounded_down_to", 1), "rounded_down_to must be 10"),
    (put("source/suppressed_below", 0), "suppressed_below must be"),
    (put("usage/licence", ""), "usage.licence must be"),
    (put("usage/purposes", []), "at least one DUO"),
    (put("usage/purposes", ["DUO:0000043"]), "known codes"),
    (put("usage/purposes", ["DUO:0000042", "DUO:0000042"]), "twice"),
    (put("usage/purposes", [{}]), "known codes"),
    (put("usage/terms_sha256", "abc"), "terms_sha256 must be"),
    (put("usage/expires", "2027-13-01"), "usage.expires must be"),
    (put("usage/expires", "2020-01-01"), "before the package was made"),
    (put("software", {"python": "3"}), "ppdd among them"),
    (put("software/ppdd", "\x1b[31m"), "software['ppdd'] must be"),
    (put("files", []), "files must be an object"),
    (put("files/..\\x", ENTRY), "not a safe path"),
    (put("files/run.py", ENTRY), "not a file of format version 1"),
    (remove("files/privacy.json"), "files lacks privacy.json"),
    (put("files/privacy.json", "x"), "must be an object"),
    (put("files/privacy.json/sha256", "A" * 64), "sha256 must be"),
    (put("files/privacy.json/size", -1), "size must be"),
    (put("files/privacy.json/media_type", "text/html"), "media_type must be"),
    (remove("files/privacy.json/size"), "lacks the field size"),
]


@pytest.mark.parametrize(("change", "said"), FAULTS, ids=[said for _, said in FAULTS])
def test_names_the_problem(
    value: dict[str, Any], change: Callable[[dict[str, Any]], None], said: str
) -> None:
    assert manifest.find_problems(value) == []
    change(value)
    with pytest.raises(BadManifestError) as caught:
        manifest.read(canonical.dump(value))
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_every_problem_is_reported_at_once(value: dict[str, Any]) -> None:
    planted = [fault for fault in FAULTS if fault[1] in TOGETHER]
    assert len(planted) == len(TOGETHER)
    for change, _ in planted:
        change(value)
    problems = manifest.find_problems(value)
    assert [said for _, said in planted if not any(said in text for text in problems)] == []


TOGETHER = (
    "format_version must be 1",
    "unknown field 'surprise'",
    "but site.id is",
    "spaces at its ends",
    "upper and lower case",
    "square",
    "images.dtype must be",
    "images.labels must be",
    "normalisation.mean",
    "normalisation.std",
    "net.width",
    "same classes",
    "rounded_down_to must be 10",
    "usage.licence must be",
    "terms_sha256 must be",
    "ppdd among them",
    "not a safe path",
    "sha256 must be",
    "media_type must be",
)


def test_several_problems_stand_in_one_error(value: dict[str, Any]) -> None:
    value.update(version="x", learning_rate=-1, created="now")
    with pytest.raises(BadManifestError) as caught:
        manifest.read(canonical.dump(value))
    assert len(caught.value.problems) == 3


def test_too_large_a_manifest_is_refused_unread() -> None:
    with pytest.raises(BadManifestError, match="at most"):
        manifest.read(b" " * (manifest.MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"', "{}", '{"files":{}}', "{"])
def test_anything_else_is_no_manifest(text: str) -> None:
    with pytest.raises(BadManifestError):
        manifest.read(text.encode())


JUNK: tuple[Any, ...] = (None, True, -1, 1.5, "x", [], {}, [[1], {}])


def places(value: dict[str, Any], groups: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in value.items():
        yield (*groups, name)
        if isinstance(inner, dict):
            yield from places(inner, (*groups, name))


def test_junk_anywhere_is_a_problem_and_no_crash(value: dict[str, Any]) -> None:
    accepted = set()
    for *groups, leaf in list(places(value)):
        if groups[:1] == ["recipe"] or (groups and groups[0] == "files" and leaf > "README.md"):
            continue  # the recipe's own tests; other files are like the first
        for junk in JUNK:
            place = value
            for group in groups:
                place = place[group]
            before, place[leaf] = place[leaf], junk
            if not manifest.find_problems(value) and before != junk:
                accepted.add("/".join([*groups, leaf]))
                data = canonical.dump(value)
                assert manifest.read(data).to_bytes() == data
            place[leaf] = before
    assert accepted == {
        "site/name",
        "source/classes/COVID",
        "learning_rate",
        "usage/licence",
        "usage/terms_sha256",
        "usage/expires",
        "software/ppdd",
        "software/python",
    }


def test_counts_are_rounded_down_and_small_ones_suppressed() -> None:
    counts = {"a": 1709, "b": 20, "c": 19, "d": 0, "e": 1}
    assert source_summary(counts, 20) == {
        "classes": {"a": 1700, "b": 20, "c": None, "d": None, "e": None},
        "rounded_down_to": 10,
        "suppressed_below": 20,
    }
    assert source_summary({"a": 27}, 25)["classes"] == {"a": 20}


def test_the_digest_of_a_package_is_that_of_its_manifest(built: Mapping[str, bytes]) -> None:
    assert len(manifest.digest(built[MANIFEST])) == 64
    assert manifest.digest(built[MANIFEST]) != manifest.digest(built[MANIFEST] + b" ")

"""The manifest: what a package is, in one canonical JSON document that names every file's sha256.

Torch-free. `Manifest` is the checked value; `read` accepts hostile bytes and reports every problem at once.
That the files *are* what the manifest says is `verify`'s work.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

from ppdd_core.config import Recipe
from ppdd_core.errors import BadConfigError, BadManifestError, PackageError
from ppdd_core.package import canonical
from ppdd_core.package.archive import path_problem

FORMAT_VERSION = 1
MANIFEST, SIGNATURE, CARD = "manifest.json", "signature.dsse.json", "README.md"
TENSORS, EVALUATION, PRIVACY = "distilled.safetensors", "evaluation.json", "privacy.json"
CROISSANT, CONTACT_SHEET = "croissant.json", "previews/contact-sheet.png"

MAX_MANIFEST_BYTES = 4 * 2**20
MAX_IMAGES = 9_000  # previews are one file each, and an archive holds at most 10,000 entries
MAX_EPOCHS = 100_000  # of the recipe's detector, which whoever loads the package may follow
MIN_LEARNING_RATE, MAX_LEARNING_RATE = 1e-8, 100.0
ROUNDED_DOWN_TO = 10
_MAX_PROBLEMS = 200
_MAX_FILE = 2**30

LabelKind = Literal["hard", "soft"]
Dtype = Literal["float16", "float32"]

# Data Use Ontology terms a site may choose from (purl.obolibrary.org/obo/DUO_…). "Clinical care use"
# (DUO:0000043) is left out on purpose: packages are for research only.
DUO: dict[str, str] = {
    "DUO:0000006": "health or medical or biomedical research",
    "DUO:0000007": "disease specific research",
    "DUO:0000011": "population origins or ancestry research only",
    "DUO:0000012": "research specific restrictions",
    "DUO:0000015": "no general methods research",
    "DUO:0000016": "genetic studies only",
    "DUO:0000018": "not for profit, non commercial use only",
    "DUO:0000019": "publication required",
    "DUO:0000020": "collaboration required",
    "DUO:0000021": "ethics approval required",
    "DUO:0000022": "geographical restriction",
    "DUO:0000024": "publication moratorium",
    "DUO:0000025": "time limit on use",
    "DUO:0000026": "user specific restriction",
    "DUO:0000027": "project specific restriction",
    "DUO:0000028": "institution specific restriction",
    "DUO:0000029": "return to database or resource",
    "DUO:0000042": "general research use",
    "DUO:0000044": "population origins or ancestry research prohibited",
    "DUO:0000045": "not for profit organisation use only",
    "DUO:0000046": "non-commercial use only",
}

_SLUG = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
_NAME = re.compile(rf"(?P<site>{_SLUG})/(?P<name>{_SLUG})")
_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_PRERELEASE = rf"(?:{_NUMBER}|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
# Semantic Versioning 2.0.0 without build metadata: two versions that differ only there would be "equal".
_SEMVER = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-{_PRERELEASE}(?:\.{_PRERELEASE})*)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PROGRAM = re.compile(_SLUG)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the package."""

    sha256: str
    size: int  # bytes
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the site allows: licence (SPDX id or its own words), purposes as DUO codes, terms, expiry."""

    licence: str
    purposes: tuple[str, ...]
    terms_sha256: str | None = None  # of the terms' text, UTF-8
    expires: str | None = None  # last day of use, YYYY-MM-DD


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a package says about itself. Made by `build` or by `read`, which checks it."""

    name: str  # site/name
    version: str
    site_id: str
    site_name: str
    key: str  # fingerprint of the signing key
    created: str  # UTC, YYYY-MM-DDTHH:MM:SSZ
    classes: tuple[str, ...]
    images_per_class: int
    image_shape: tuple[int, int, int]  # channels, height, width
    dtype: Dtype
    label_kind: LabelKind
    mean: float  # stored value = (pixel - mean) / std, pixels in [0, 1]
    std: float
    learning_rate: float
    recipe: Mapping[str, Any]
    source: Mapping[str, Any]
    software: Mapping[str, str]
    usage: Usage
    files: Mapping[str, FileEntry]

    @property
    def images(self) -> int:
        """Synthetic images in the package."""
        return self.images_per_class * len(self.classes)

    def to_bytes(self) -> bytes:
        """Return the canonical JSON that is signed; an invalid manifest raises BadManifestError."""
        data = canonical.dump(to_dict(self))
        read(data)
        return data


def read(data: bytes) -> Manifest:
    """Return the manifest in `data`; BadManifestError carries every problem found."""
    try:
        value = canonical.parse(data, name=MANIFEST, limit=MAX_MANIFEST_BYTES)
    except PackageError as err:
        raise BadManifestError([str(err)]) from err
    problems = find_problems(value)
    if not problems and canonical.dump(value) != data:
        problems = ["it is not in canonical form (RFC 8785)"]
    if problems:
        raise BadManifestError(problems)
    return _from_dict(value)


def digest(manifest: bytes) -> str:
    """Return the package digest: sha256 of the manifest's bytes, which name every other file's sha256."""
    return hashlib.sha256(manifest).hexdigest()


def preview_path(index: int) -> str:
    """Return where the picture of image `index` lies in the package."""
    return f"previews/image-{index:04d}.png"


def media_types(images: int) -> dict[str, str]:
    """Return every file the manifest must name, with its media type, for that many images."""
    return {
        CARD: "text/markdown",
        CROISSANT: "application/ld+json",
        TENSORS: "application/vnd.safetensors",
        EVALUATION: "application/json",
        PRIVACY: "application/json",
        CONTACT_SHEET: "image/png",
    } | {preview_path(index): "image/png" for index in range(images)}


def source_summary(counts: Mapping[str, int], suppress_below: int) -> dict[str, Any]:
    """Return what may be said about class sizes: rounded down to 10, nothing below `suppress_below`.

    Zero is suppressed like any other small number, so the two cannot be told apart.
    """
    return {
        "classes": {
            name: None if count < max(1, suppress_below) else count - count % ROUNDED_DOWN_TO
            for name, count in counts.items()
        },
        "rounded_down_to": ROUNDED_DOWN_TO,
        "suppressed_below": suppress_below,
    }


def to_dict(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest as plain JSON values."""
    usage = manifest.usage
    return {
        "format_version": FORMAT_VERSION,
        "name": manifest.name,
        "version": manifest.version,
        "site": {"id": manifest.site_id, "name": manifest.site_name, "key": manifest.key},
        "created": manifest.created,
        "classes": list(manifest.classes),
        "images": {
            "per_class": manifest.images_per_class,
            "shape": list(manifest.image_shape),
            "dtype": manifest.dtype,
            "labels": manifest.label_kind,
        },
        "normalisation": {"mean": manifest.mean, "std": manifest.std, "value_range": [0, 1]},
        "learning_rate": manifest.learning_rate,
        "recipe": dict(manifest.recipe),
        "source": dict(manifest.source),
        "software": dict(manifest.software),
        "usage": {
            "licence": usage.licence,
            "purposes": list(usage.purposes),
            "terms_sha256": usage.terms_sha256,
            "expires": usage.expires,
        },
        "files": {
            path: {"sha256": entry.sha256, "size": entry.size, "media_type": entry.media_type}
            for path, entry in manifest.files.items()
        },
    }


def _from_dict(value: Mapping[str, Any]) -> Manifest:
    images, usage, pixels = value["images"], value["usage"], value["normalisation"]
    return Manifest(
        name=value["name"],
        version=value["version"],
        site_id=value["site"]["id"],
        site_name=value["site"]["name"],
        key=value["site"]["key"],
        created=value["created"],
        classes=tuple(value["classes"]),
        images_per_class=images["per_class"],
        image_shape=tuple(images["shape"]),
        dtype=images["dtype"],
        label_kind=images["labels"],
        mean=float(pixels["mean"]),
        std=float(pixels["std"]),
        learning_rate=float(value["learning_rate"]),
        recipe=value["recipe"],
        source=value["source"],
        software=value["software"],
        usage=Usage(
            licence=usage["licence"],
            purposes=tuple(usage["purposes"]),
            terms_sha256=usage["terms_sha256"],
            expires=usage["expires"],
        ),
        files={path: FileEntry(**entry) for path, entry in value["files"].items()},
    )


# --- the rules -----------------------------------------------------------------------------------------


def find_problems(value: Any) -> list[str]:
    """Return every way in which a parsed JSON value is not a version 1 manifest, one sentence each."""
    found = _Problems()
    top = found.fields(value, "manifest", _TOP_FIELDS)
    if top.get("format_version") != FORMAT_VERSION and "format_version" in top:
        found.add(f"format_version must be {FORMAT_VERSION}, got {_short(top['format_version'])}")
    _check_identity(found, top)
    _check_images(found, top)
    _check_recipe(found, top)
    _check_source(found, top)
    _check_usage(found, top)
    _check_software(found, top)
    _check_files(found, top)
    return found.sentences[:_MAX_PROBLEMS]


_TOP_FIELDS = (
    "format_version name version site created classes images normalisation learning_rate recipe source"
    " software usage files"
)


def identity_problems(
    *,
    name: str,
    version: str,
    site_id: str,
    site_name: str,
    usage: Usage,
    created: str | None = None,
) -> list[str]:
    """Return what `find_problems` would say of these alone: to be asked before hours of work, not after."""
    found = _Problems()
    top: dict[str, Any] = {
        "site": {"id": site_id, "name": site_name, "key": "0" * 64},
        "name": name,
        "version": version,
        "usage": {
            "licence": usage.licence,
            "purposes": list(usage.purposes),
            "terms_sha256": usage.terms_sha256,
            "expires": usage.expires,
        },
    }
    if created is not None:
        top["created"] = created
    _check_identity(found, top)
    _check_usage(found, top)
    return found.sentences


class _Problems:
    """Sentences found so far. Each method checks one value, adds what is wrong, and returns it or None."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def fields(self, value: Any, where: str, names: str) -> dict[str, Any]:
        """Return an object's known fields; missing and unknown ones are problems."""
        if not isinstance(value, dict):
            self.add(f"{where} must be an object, got {_short(value)}")
            return {}
        known = names.split()
        for name in known:
            if name not in value:
                self.add(f"{where} lacks the field {name}")
        for name in sorted(set(value) - set(known)):
            self.add(f"{where} has the unknown field {_short(name)}")
        return {name: value[name] for name in known if name in value}

    def match(
        self, value: Any, where: str, pattern: re.Pattern[str], rule: str, longest: int = 64
    ) -> bool:
        """Return whether `value` is text of that form."""
        if isinstance(value, str) and len(value) <= longest and pattern.fullmatch(value):
            return True
        self.add(f"{where} must be {rule}, got {_short(value)}")
        return False

    def words(self, value: Any, where: str, longest: int) -> bool:
        """Return whether `value` is text that can safely be shown to people."""
        reason = None
        if not isinstance(value, str) or not 1 <= len(value) <= longest:
            reason = f"text of 1 to {longest} characters"
        elif not value.isprintable():  # control characters, direction overrides, unassigned
            reason = "printable text without control or direction characters"
        elif value != value.strip() or value != unicodedata.normalize("NFC", value):
            reason = "text in Unicode NFC without spaces at its ends"
        if reason:
            self.add(f"{where} must be {reason}, got {_short(value)}")
        return reason is None

    def number(self, value: Any, where: str, low: float, high: float) -> bool:
        """Return whether `value` is a finite number in [low, high]."""
        plain = isinstance(value, int | float) and not isinstance(value, bool)
        if plain and math.isfinite(value) and low <= value <= high:
            return True
        self.add(f"{where} must be a number from {low:g} to {high:g}, got {_short(value)}")
        return False

    def whole(self, value: Any, where: str, low: int, high: int) -> bool:
        """Return whether `value` is a whole number in [low, high]."""
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return True
        self.add(f"{where} must be a whole number from {low} to {high}, got {_short(value)}")
        return False

    def choice(self, value: Any, where: str, allowed: tuple[str, ...]) -> bool:
        """Return whether `value` is one of the allowed words."""
        if isinstance(value, str) and value in allowed:
            return True
        self.add(f"{where} must be one of {', '.join(allowed)}, got {_short(value)}")
        return False


def _check_identity(found: _Problems, top: Mapping[str, Any]) -> None:
    site = found.fields(top["site"], "site", "id name key") if "site" in top else {}
    if "id" in site:
        found.match(site["id"], "site.id", _PROGRAM, "lower-case letters, digits and single . _ -")
    if "name" in site:
        found.words(site["name"], "site.name", 200)
    if "key" in site:
        found.match(site["key"], "site.key", _SHA256, "a sha256 in hex")
    if "name" in top and found.match(
        top["name"], "name", _NAME, "site/name in lower-case letters", 129
    ):
        owner = top["name"].split("/")[0]
        if "id" in site and owner != site["id"]:
            found.add(f"name begins with {_short(owner)}, but site.id is {_short(site['id'])}")
    if "version" in top:
        found.match(
            top["version"],
            "version",
            _SEMVER,
            "a semantic version such as 1.0.0 without build data",
        )
    if "created" in top and parse_time(top["created"]) is None:
        found.add(
            f"created must be a UTC time as 2026-11-22T08:00:00Z, got {_short(top['created'])}"
        )


def _check_images(found: _Problems, top: Mapping[str, Any]) -> None:
    classes = top.get("classes")
    if "classes" in top:
        if not isinstance(classes, list) or not 2 <= len(classes) <= 1000:
            found.add("classes must be a list of 2 to 1000 names")
        else:
            shown = [found.words(name, f"classes[{n}]", 100) for n, name in enumerate(classes)]
            folded = Counter(str(name).casefold() for name in classes)
            twins = sorted(name for name, count in folded.items() if count > 1)
            if all(shown) and twins:
                found.add(f"classes must differ in more than upper and lower case: {_short(twins)}")
    if "images" in top:
        images = found.fields(top["images"], "images", "per_class shape dtype labels")
        if "per_class" in images:
            per_class = images["per_class"]
            whole = found.whole(per_class, "images.per_class", 1, MAX_IMAGES)
            if whole and isinstance(classes, list) and per_class * len(classes) > MAX_IMAGES:
                found.add(f"images.per_class times classes must be at most {MAX_IMAGES}")
        if "shape" in images:
            _check_shape(found, images["shape"])
        if "dtype" in images:
            found.choice(images["dtype"], "images.dtype", ("float16", "float32"))
        if "labels" in images:
            found.choice(images["labels"], "images.labels", ("hard", "soft"))
    if "normalisation" in top:
        pixels = found.fields(top["normalisation"], "normalisation", "mean std value_range")
        if "mean" in pixels:
            found.number(pixels["mean"], "normalisation.mean", 0, 1)
        if "std" in pixels:
            found.number(pixels["std"], "normalisation.std", 1e-4, 1)
        if pixels.get("value_range", [0, 1]) != [0, 1]:
            found.add(
                "normalisation.value_range must be [0, 1]: the range of pixels before normalisation"
            )
    if "learning_rate" in top:
        found.number(top["learning_rate"], "learning_rate", MIN_LEARNING_RATE, MAX_LEARNING_RATE)


def _check_shape(found: _Problems, shape: Any) -> None:
    plain = isinstance(shape, list) and len(shape) == 3
    if not plain or not all(isinstance(side, int) and not isinstance(side, bool) for side in shape):
        found.add(f"images.shape must be [channels, height, width], got {_short(shape)}")
    elif shape[0] not in (1, 3) or shape[1] != shape[2] or not 8 <= shape[1] <= 512:
        found.add(
            f"images.shape must have 1 or 3 channels and be square, 8 to 512 pixels, got {_short(shape)}"
        )


def _check_recipe(found: _Problems, top: Mapping[str, Any]) -> None:
    if "recipe" not in top:
        return
    try:
        recipe = Recipe.from_dict(top["recipe"])
    except BadConfigError as err:
        found.add(f"recipe: {str(err)[:300]}")
        return
    if recipe.detector.epochs > MAX_EPOCHS:
        found.add(
            f"recipe.detector.epochs must be at most {MAX_EPOCHS}, got {recipe.detector.epochs}"
        )
    if not recipe.preset.isprintable() or len(recipe.preset) > 100:
        found.add("recipe.preset must be printable text of at most 100 characters")
    images = top.get("images")
    if isinstance(images, dict):
        shape, per_class = images.get("shape"), images.get("per_class")
        if isinstance(shape, list) and shape[1:] != [recipe.image_size] * 2:
            found.add(
                f"images.shape is {_short(shape)}, but recipe.image_size is {recipe.image_size}"
            )
        if per_class != recipe.distill.images_per_class:
            found.add(
                f"images.per_class is {_short(per_class)}, but recipe.distill.images_per_class is"
                f" {recipe.distill.images_per_class}"
            )


def _check_source(found: _Problems, top: Mapping[str, Any]) -> None:
    if "source" not in top:
        return
    source = found.fields(top["source"], "source", "classes rounded_down_to suppressed_below")
    if source.get("rounded_down_to", ROUNDED_DOWN_TO) != ROUNDED_DOWN_TO:
        found.add(f"source.rounded_down_to must be {ROUNDED_DOWN_TO}")
    smallest = source.get("suppressed_below", 0)
    if "suppressed_below" in source and not found.whole(
        smallest, "source.suppressed_below", 1, 10**6
    ):
        smallest = 0
    counts = source.get("classes", {})
    if not isinstance(counts, dict):
        found.add(f"source.classes must be an object, got {_short(counts)}")
        return
    if "classes" in source and isinstance(top.get("classes"), list):
        names = [name for name in top["classes"] if isinstance(name, str)]
        if sorted(counts) != sorted(names):
            found.add("source.classes must name the same classes as classes")
    for name, count in counts.items():
        where = f"source.classes[{_short(name)}]"
        if count is None or not found.whole(count, where, 0, 10**9):
            continue
        told = count <= smallest - ROUNDED_DOWN_TO or count == 0 < smallest
        if count % ROUNDED_DOWN_TO or told:
            found.add(f"{where} must be suppressed or rounded down, got {count}")


def _check_usage(found: _Problems, top: Mapping[str, Any]) -> None:
    if "usage" not in top:
        return
    usage = found.fields(top["usage"], "usage", "licence purposes terms_sha256 expires")
    if "licence" in usage:
        found.words(usage["licence"], "usage.licence", 200)
    purposes = usage.get("purposes")
    if "purposes" in usage:
        if not isinstance(purposes, list) or not 1 <= len(purposes) <= len(DUO):
            found.add("usage.purposes must be a list of at least one DUO code")
        else:
            for code in purposes:
                if not isinstance(code, str) or code not in DUO:
                    found.add(f"usage.purposes holds {_short(code)}; known codes: {', '.join(DUO)}")
            if len({str(code) for code in purposes}) != len(purposes):
                found.add("usage.purposes names a code twice")
    if usage.get("terms_sha256") is not None:
        found.match(
            usage["terms_sha256"], "usage.terms_sha256", _SHA256, "a sha256 in hex, or null"
        )
    expires = usage.get("expires")
    if expires is not None:
        day = parse_day(expires)
        created = parse_time(top.get("created"))
        if day is None:
            found.add(f"usage.expires must be a day as 2027-12-31, or null, got {_short(expires)}")
        elif created is not None and day < created.date():
            found.add(f"usage.expires is {expires}, before the package was made")


def _check_software(found: _Problems, top: Mapping[str, Any]) -> None:
    software = top.get("software", {"ppdd": "0"})
    if not isinstance(software, dict) or len(software) > 50 or "ppdd" not in software:
        found.add("software must map program names, ppdd among them and at most 50, to versions")
        return
    if "software" in top:
        for name, version in software.items():
            found.match(
                name, "a name in software", _PROGRAM, "lower-case letters, digits and single . _ -"
            )
            found.words(version, f"software[{_short(name)}]", 100)


def _check_files(found: _Problems, top: Mapping[str, Any]) -> None:
    files = top.get("files", {})
    if not isinstance(files, dict):
        found.add(f"files must be an object, got {_short(files)}")
        return
    expected = media_types(_images(top)) if "files" in top else {}
    for path in sorted(set(expected) - set(files)):
        found.add(f"files lacks {path}")
    for path, entry in files.items():
        where = f"files[{_short(path)}]"
        unsafe = path_problem(path)
        if unsafe:
            found.add(f"{where} is not a safe path: {unsafe}")
        elif path not in expected:
            found.add(f"{where} is not a file of format version {FORMAT_VERSION}")
        values = found.fields(entry, where, "sha256 size media_type")
        if "sha256" in values:
            found.match(values["sha256"], f"{where}.sha256", _SHA256, "a sha256 in hex")
        if "size" in values:
            found.whole(values["size"], f"{where}.size", 0, _MAX_FILE)
        if path in expected and values.get("media_type", expected[path]) != expected[path]:
            found.add(
                f"{where}.media_type must be {expected[path]}, got {_short(values['media_type'])}"
            )


def _images(top: Mapping[str, Any]) -> int:
    classes, images = top.get("classes"), top.get("images")
    per_class = images.get("per_class") if isinstance(images, dict) else None
    if not isinstance(classes, list) or not isinstance(per_class, int) or per_class < 0:
        return 0
    return min(len(classes) * per_class, MAX_IMAGES)


def parse_time(text: Any) -> datetime | None:
    """Return the time written as 2026-11-22T08:00:00Z, or None where it is written in another way."""
    if not isinstance(text, str) or not re.fullmatch(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", text
    ):
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_day(text: Any) -> date | None:
    """Return the day written as 2027-12-31, or None where it is written in another way."""
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."

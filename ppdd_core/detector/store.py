"""A detector on disk: a folder with `detector.json` and `weights.safetensors`; no pickle, no code.

Written whole or not at all. Reading trusts nothing: sizes are bounded before reading, the weights' digest, names,
shapes and values are checked, and every fault is a PackageError that names the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as write_safetensors
from torch import Tensor

from ppdd_core.config import DetectorConfig, NetConfig
from ppdd_core.data.distilled import Normalisation
from ppdd_core.detector.model import Detector, Source
from ppdd_core.detector.use import DESCRIPTION, USE, WEIGHTS
from ppdd_core.errors import BadConfigError, DigestMismatchError, PackageError
from ppdd_core.nets.functional import FlatNet, flatten

FORMAT_VERSION = 1
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 512 << 20
HEADER_BYTES = 1 << 16  # safetensors' own header: names and shapes
MAX_CLASSES = 1000
MAX_NAME = 200  # characters of any text in the description

_TOP = {
    *("format_version", "use", "classes", "image_size", "normalisation", "net", "training", "seed"),
    *("class_map", "sources", "weights"),
}

Where = str  # a place inside detector.json, for messages


def save_detector(detector: Detector, folder: Path) -> Path:
    """Write `folder`, which must not exist yet or be empty, and return it.

    An existing folder with content, a link, or a place inside a file raises PackageError; so do weights that
    are not finite, because a diverged detector is none.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise PackageError(f"{folder} exists already; choose another name or remove it first")
    if not bool(torch.isfinite(detector.theta_P).all()):
        raise PackageError(
            "the detector's weights are not finite; train it again with a smaller step size"
        )
    named = detector.flat_net().split(detector.theta_P.detach().float().cpu())
    weights = write_safetensors({name: part.contiguous() for name, part in named.items()})
    description = json.dumps(
        _describe(detector, weights), indent=2, sort_keys=True, ensure_ascii=False
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise PackageError(
            f"{folder} cannot be made, because {folder.parent} is not a folder or lies in a file"
        ) from None
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        partial.chmod(0o755)
        _write(partial / WEIGHTS, weights)
        _write(partial / DESCRIPTION, description.encode() + b"\n")
        partial.rename(folder)  # replaces an empty folder, never a full one
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folder


def load_detector(folder: Path) -> Detector:
    """Return the detector in `folder`; anything missing, oversized, altered or implausible raises PackageError."""
    where = folder / DESCRIPTION
    try:
        value = json.loads(_read(where, MAX_DESCRIPTION_BYTES), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{where} is not JSON: {error}") from None
    try:
        detector, sha256 = _parse(value)
    except (BadConfigError, _Fault) as error:
        raise PackageError(f"{where}: {error}") from None
    net = detector.flat_net()
    limit = min(MAX_WEIGHTS_BYTES, 4 * net.parameters + HEADER_BYTES)
    data = _read(folder / WEIGHTS, limit)
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise DigestMismatchError(WEIGHTS, expected=sha256, actual=actual)
    theta_P = _weights(data, net, folder / WEIGHTS)
    return Detector(
        **{f.name: getattr(detector, f.name) for f in fields(Detector)} | {"theta_P": theta_P}
    )


# -------------------------------------------------------------------------------- description


def _describe(detector: Detector, weights: bytes) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "use": USE,
        "classes": list(detector.classes),
        "image_size": detector.image_size,
        "normalisation": asdict(detector.normalisation),
        "net": asdict(detector.net),
        "training": asdict(detector.config),
        "seed": detector.seed,
        "class_map": dict(detector.class_map),
        "sources": [
            asdict(source) | {"classes": list(source.classes)} for source in detector.sources
        ],
        "weights": {"file": WEIGHTS, "sha256": hashlib.sha256(weights).hexdigest()},
    }


class _Fault(Exception):  # noqa: N818 - never leaves this module
    pass


def _parse(value: Any) -> tuple[Detector, str]:
    """Return the detector, its weights still empty, and their digest."""
    top = _object(value, "the description", fields_wanted=_TOP)
    if top["format_version"] != FORMAT_VERSION:
        raise _Fault(
            f"format version {top['format_version']!r} is unknown; this program reads {FORMAT_VERSION}"
        )
    classes = _texts(top["classes"], "classes")
    if not 2 <= len(classes) <= MAX_CLASSES or len(set(classes)) < len(classes):
        raise _Fault(f"classes must be 2 to {MAX_CLASSES} different names")
    image_size = _whole(top["image_size"], "image_size", 8, 512)
    pixels = _object(top["normalisation"], "normalisation", fields_wanted={"mean", "std"})
    weights = _object(top["weights"], "weights", fields_wanted={"file", "sha256"})
    sha256 = weights["sha256"]
    if (
        weights["file"] != WEIGHTS
        or not isinstance(sha256, str)
        or not re.fullmatch("[0-9a-f]{64}", sha256)
    ):
        raise _Fault(f"weights must name {WEIGHTS} and its sha256")
    net = NetConfig(**_typed(top["net"], "net", NetConfig))
    if net.architecture == "convnet" and image_size >> net.depth < 1:
        raise _Fault(f"net.depth {net.depth} is too deep for {image_size} pixels")
    if not isinstance(top["sources"], list) or not 1 <= len(top["sources"]) <= 1000:
        raise _Fault("sources must be a list of 1 to 1000 entries")
    class_map = _object(top["class_map"], "class_map")
    detector = Detector(
        theta_P=torch.empty(0),
        net=net,
        classes=classes,
        image_size=image_size,
        normalisation=Normalisation(
            mean=_number(pixels["mean"], "normalisation.mean", -10, 10),
            std=_number(pixels["std"], "normalisation.std", 1e-4, 10),
        ),
        sources=tuple(
            _source(one, f"sources[{number}]") for number, one in enumerate(top["sources"])
        ),
        class_map=tuple(
            sorted(
                (_text(old, "class_map"), _text(new, "class_map")) for old, new in class_map.items()
            )
        ),
        config=DetectorConfig(**_typed(top["training"], "training", DetectorConfig)),
        seed=_whole(top["seed"], "seed", 0, 2**63 - 1),
    )
    return detector, sha256


def _source(value: Any, where: Where) -> Source:
    one = _object(value, where, fields_wanted={f.name for f in fields(Source)})
    return Source(
        name=_text(one["name"], f"{where}.name"),
        version=_text(one["version"], f"{where}.version"),
        digest=_text(one["digest"], f"{where}.digest"),
        images=_whole(one["images"], f"{where}.images", 1, 10**9),
        classes=_texts(one["classes"], f"{where}.classes"),
        learning_rate=_number(one["learning_rate"], f"{where}.learning_rate", 0, 100),
    )


def _object(
    value: Any, where: Where, *, fields_wanted: set[str] | None = None
) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(f"{where} must be an object")
    if fields_wanted is not None and set(value) != fields_wanted:
        different = ascii(sorted(set(value) ^ fields_wanted)[0])[:MAX_NAME]
        raise _Fault(
            f"{where} must have exactly the fields {', '.join(sorted(fields_wanted))}; see {different}"
        )
    return value


def _typed(
    value: Any, where: Where, kind: type[NetConfig] | type[DetectorConfig]
) -> dict[str, Any]:
    """Return the fields of a config after checking their types; the config checks the values."""
    default = asdict(kind())
    given = dict(_object(value, where, fields_wanted=set(default)))
    for name, usual in default.items():
        if (
            isinstance(usual, float)
            and isinstance(given[name], int)
            and not isinstance(given[name], bool)
        ):
            given[name] = float(given[name])
        if type(given[name]) is not type(usual):
            raise _Fault(f"{where}.{name} must be a {type(usual).__name__}")
    return given


def _text(value: Any, where: Where) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise _Fault(f"{where} must be printable text of at most {MAX_NAME} characters")
    return value


def _texts(value: Any, where: Where) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_CLASSES:
        raise _Fault(f"{where} must be a list of at most {MAX_CLASSES} names")
    return tuple(_text(one, where) for one in value)


def _whole(value: Any, where: Where, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _Fault(f"{where} must be a whole number from {low} to {high}")
    return value


def _number(value: Any, where: Where, low: float, high: float) -> float:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not low <= value <= high:
        raise _Fault(f"{where} must be a number from {low:g} to {high:g}")
    return float(value)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


# -------------------------------------------------------------------------------- bytes


def _weights(data: bytes, net: FlatNet, where: Path) -> Tensor:
    try:
        found = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise PackageError(f"{where} is no safetensors file: {error}") from None
    wanted = {
        name: part.shape
        for name, part in net.split(torch.empty(net.parameters, device="meta")).items()
    }
    if set(found) != set(wanted):
        different = ascii(sorted(set(found) ^ set(wanted))[0])[:MAX_NAME]
        raise PackageError(
            f"{where} does not hold the weights of a {net.config.architecture}; see {different}"
        )
    for name, shape in wanted.items():
        if found[name].dtype != torch.float32 or found[name].shape != shape:
            raise PackageError(
                f"{where}: {name} must be float32 {tuple(shape)}, "
                f"it is {found[name].dtype} {tuple(found[name].shape)}"
            )
    theta_P = flatten(found[name] for name in wanted)
    if not math.isfinite(float(theta_P.abs().sum(dtype=torch.float64))):
        raise PackageError(f"{where} holds numbers that are not finite")
    return theta_P


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, limit: int) -> bytes:
    """Return a regular file's bytes; a link, a device or more than `limit` bytes raise PackageError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise PackageError(
            f"{path} is missing; a detector is a folder with {DESCRIPTION} and {WEIGHTS}"
        ) from None
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise PackageError(f"{path} is not a regular file")
    with os.fdopen(handle, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise PackageError(f"{path} is larger than the {limit} bytes it may have")
    return data

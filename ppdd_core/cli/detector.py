"""`ppdd detector`: train from packages, evaluate on local images, predict single images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.arguments import checked_key, checked_seed, in_the_way, readable
from ppdd_core.cli.console import FAILED, JsonOption, complain, emit, progress_bar
from ppdd_core.cli.dataset import WhereOption, parse_where
from ppdd_core.config import Recipe
from ppdd_core.data.names import shown
from ppdd_core.detector.joining import choose_net, refuse_repeated
from ppdd_core.detector.use import USE
from ppdd_core.errors import BadConfigError
from ppdd_core.seeding import split_seed

if TYPE_CHECKING:
    from ppdd_core.data.dataset import LabelledImages
    from ppdd_core.detector.metrics import Metrics
    from ppdd_core.detector.model import Detector
    from ppdd_core.detector.predict import Prediction
    from ppdd_core.package.verify import VerifiedPackage

app = typer.Typer(
    help="Detectors: train from packages, evaluate, predict. Research use only.",
    no_args_is_help=True,
)


class Net(StrEnum):
    """Architectures by name."""

    convnet = "convnet"
    alexnet = "alexnet"
    vgg11 = "vgg11"
    resnet18 = "resnet18"


class Part(StrEnum):
    """Which of the local images are looked at."""

    test = "test"
    all = "all"


class Device(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


DetectorPath = Annotated[
    Path, typer.Argument(metavar="DETECTOR", help="A detector's folder, made by `detector train`.")
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="A=B", help="Take class A for the detector's class B; may be repeated."
    ),
]


@app.command()
def train(
    packages: Annotated[
        list[Path], typer.Argument(metavar="PACKAGE…", help="Packages: folders or ZIPs.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the detector to; must not exist yet.")],
    local: Annotated[
        Path | None, typer.Option(help="Real images of this hospital to train on as well.")
    ] = None,
    where: WhereOption = None,
    class_map: MapOption = None,
    net: Annotated[
        Net | None, typer.Option(help="Network; default: the one the packages were distilled for.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Default: as the first package was evaluated.")
    ] = None,
    local_step: Annotated[float, typer.Option(help="Step size of batches of local images.")] = 0.01,
    seed: Annotated[
        int, typer.Option(callback=checked_seed, help="Decides everything random.")
    ] = 0,
    key: Annotated[
        list[str] | None,
        typer.Option(
            "--key",
            metavar="FINGERPRINT",
            help="Accept packages of these signers only; may be repeated.",
        ),
    ] = None,
    device: Annotated[
        Device, typer.Option(help="auto takes a GPU where there is one.")
    ] = Device.auto,
    as_json: JsonOption = False,
) -> None:
    """Train a detector from one or several packages, and on local images where they are given.

    Packages are verified first. Classes are joined by name; pixels are brought to one scale; every package's
    images are stepped with the step size that was distilled with them. Of local images only the training split
    (by patient, decided by the seed) is used, so `detector evaluate --split test` shows images never trained on.
    """
    _refuse_existing(out)
    keys = [one for one in map(checked_key, key or []) if one]
    opened = [_open(path, keys) for path in packages]
    from ppdd_core.detector.store import save_detector
    from ppdd_core.detector.train import train_detector
    from ppdd_core.package.load import to_distilled_set

    sets = [to_distilled_set(package) for package in opened]
    config = Recipe.from_dict(opened[0].manifest.recipe).detector
    names = [
        (one.manifest.name, one.manifest.version, one.verification.digest or "") for one in opened
    ]
    refuse_repeated(names)
    images = None
    if local is not None:
        images = _images(local, sets[0].image_size, where, part="train", seed=seed)
    elif where:
        raise BadConfigError("--where chooses local images; give them with --local")
    with progress_bar("training") as update:
        detector = train_detector(
            sets,
            net=choose_net(net.value if net else None, [one.net for one in sets], names),
            config=config if epochs is None else replace(config, epochs=epochs),
            seed=seed,
            local=images,
            local_step=local_step,
            class_map=_pairs(class_map),
            names=names,
            device=_device(device),
            on_progress=lambda done, total, _loss: update(done, total),
        )
    save_detector(detector, out)
    emit(_trained(detector, out), as_json=as_json, render=_show_trained(detector, out))


@app.command()
def evaluate(
    path: DetectorPath,
    data: Annotated[Path, typer.Option(help="Labelled images: folder, ZIP or CSV manifest.")],
    where: WhereOption = None,
    split: Annotated[
        Part,
        typer.Option(help="test: the patients held out by the detector's seed or the manifest."),
    ] = Part.test,
    class_map: MapOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a detector on labelled images of this hospital, with 95 % intervals."""
    from ppdd_core.detector.store import load_detector

    detector = load_detector(path)
    images = _images(data, detector.image_size, where, part=split.value, seed=detector.seed)
    with progress_bar("evaluating") as update:
        update(0, 1)
        found = detector.evaluate(images, class_map=_pairs(class_map))
        update(1, 1)
    value = {
        "detector": readable(path),
        "split": split.value,
        "images": found.images,
        "classes": list(detector.classes),
        "use": USE,
        **found.to_dict(),
    }
    emit(value, as_json=as_json, render=_show_metrics(found, detector.classes))


@app.command()
def predict(
    path: DetectorPath,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE…", help="PNG, JPEG or DICOM files.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Say how probable each class is for each image. Research use only, not for diagnosis.

    Exit code 1 when an image could not be read; the others are still shown.
    """
    from ppdd_core.detector.predict import predict_files
    from ppdd_core.detector.store import load_detector

    detector = load_detector(path)
    with progress_bar("predicting") as update:
        found = predict_files(detector, images, on_progress=update)
    value = {
        "detector": readable(path),
        "use": USE,
        "classes": list(detector.classes),
        "predictions": [_prediction(one, detector.classes) for one in found],
    }
    emit(value, as_json=as_json, render=_show_predictions(found, detector.classes))
    failed = [one for one in found if one.problem]
    for one in failed:
        complain(f"{readable(one.path)}: {one.problem}")
    if failed:
        raise typer.Exit(FAILED)


# -------------------------------------------------------------------------------- input


def _refuse_existing(out: Path) -> None:
    """Refuse, before anything is trained, a place that `save_detector` would refuse afterwards."""
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise BadConfigError(
            f"--out {readable(out)} exists already; choose another folder or remove it first"
        )
    if blocking := in_the_way(out):
        raise BadConfigError(
            f"--out {readable(out)} cannot be made, because {readable(blocking)} is not a folder"
        )


def _open(path: Path, keys: Sequence[str]) -> VerifiedPackage:
    from ppdd_core.package.verify import open_verified

    today = datetime.now(UTC).date()
    package = open_verified(path, today=today)
    if keys and package.verification.key not in keys:
        return open_verified(path, trusted_key=keys[0], today=today)  # names the fault
    return package


def _images(
    path: Path, image_size: int, where: Sequence[str] | None, *, part: str, seed: int
) -> LabelledImages:
    from ppdd_core.data.dataset import load_images, split_by_patient

    with progress_bar("reading images") as update:
        data, findings = load_images(
            path, image_size=image_size, where=parse_where(where or []), on_progress=update
        )
    findings.refuse_errors()
    if findings.unreadable:
        complain(
            f"{len(findings.unreadable)} unreadable files were left out: ppdd dataset check {path}"
        )
    if part == "all":
        return data
    # as the pipeline splits: a package distilled from these images with the same seed saw no test patient
    parts = split_by_patient(data, seed=split_seed(seed))
    return parts.train if part == "train" else parts.test


def _pairs(options: Sequence[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for option in options or []:
        old, equals, new = (part.strip() for part in option.partition("="))
        if not (old and equals and new):
            raise BadConfigError(f"--map {shown(option)}: write it as THEIR_CLASS=YOUR_CLASS")
        if pairs.setdefault(old, new) != new:
            raise BadConfigError(
                f"--map gives {shown(old)} two names, {shown(pairs[old])} and {shown(new)}"
            )
    return pairs


def _device(wanted: Device) -> str:
    import torch

    if wanted is Device.auto:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted is Device.cuda and not torch.cuda.is_available():
        raise BadConfigError("--device cuda: no GPU that torch can use was found; use --device cpu")
    return wanted.value


# -------------------------------------------------------------------------------- output


def _trained(detector: Detector, out: Path) -> dict[str, Any]:
    return {
        "detector": readable(out),
        "use": USE,
        "classes": list(detector.classes),
        "image_size": detector.image_size,
        "net": asdict(detector.net),
        "epochs": detector.config.epochs,
        "seed": detector.seed,
        "sources": [asdict(one) for one in detector.sources],
    }


def _show_trained(detector: Detector, out: Path) -> RenderableType:
    table = _table("Trained from")
    for title, justify in (("source", "left"), ("images", "right"), ("step size", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    table.add_column("classes")
    for one in detector.sources:
        name = f"{one.name}@{one.version}" if one.version else one.name
        table.add_row(
            Text(name), f"{one.images:,}", f"{one.learning_rate:.4g}", Text(", ".join(one.classes))
        )
    net = detector.net.architecture
    lines = (
        f"{net} of {detector.flat_net().parameters:,} parameters, {detector.config.epochs} epochs, "
        f"{detector.image_size} x {detector.image_size} pixels\n"
        f"classes: {', '.join(detector.classes)}\n"
        f"written to {readable(out)}\n"
        f"next: ppdd detector evaluate {readable(out)} --data PATH"
    )
    return Group(table, Text(lines), Text(USE, style="bold yellow"))


def _show_metrics(found: Metrics, classes: Sequence[str]) -> RenderableType:
    overall = _table(f"{found.images:,} images")
    for title in ("accuracy", "balanced accuracy", "macro AUROC", "calibration error"):
        overall.add_column(title, justify="right")
    overall.add_row(
        _with_interval(found.accuracy, found.accuracy_interval),
        _share(found.balanced_accuracy),
        "–" if found.macro_auroc is None else f"{found.macro_auroc:.3f}",
        _share(found.calibration_error),
    )
    by_class = _table("Each class against the rest, with 95 % intervals")
    by_class.add_column("class")
    for title in ("images", "sensitivity", "specificity", "AUROC"):
        by_class.add_column(title, justify="right")
    for one in found.per_class:
        by_class.add_row(
            Text(one.name),
            f"{one.images:,}",
            _with_interval(one.sensitivity, one.sensitivity_interval),
            _with_interval(one.specificity, one.specificity_interval),
            "–" if one.auroc is None else f"{one.auroc:.3f}",
        )
    confusion = _table("Confusion: rows true, columns predicted")
    confusion.add_column("")
    for name in classes:
        confusion.add_column(Text(name), justify="right")
    for name, row in zip(classes, found.confusion, strict=True):
        confusion.add_row(Text(name), *(f"{count:,}" for count in row))
    return Group(overall, by_class, confusion, Text(USE, style="bold yellow"))


def _show_predictions(found: Sequence[Prediction], classes: Sequence[str]) -> RenderableType:
    table = _table(None)
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    table.add_column("")
    for one in found:
        if one.probabilities is None:
            table.add_row(Text(readable(one.path)), Text("not read", style="red"), "–", "")
        else:
            best = max(one.probabilities)
            for number, (name, value) in enumerate(zip(classes, one.probabilities, strict=True)):
                style = "bold" if value == best else "dim"
                table.add_row(
                    Text(readable(one.path) if number == 0 else ""),
                    Text(name, style=style),
                    Text(_share(value), style=style),
                    Text("█" * round(value * 24), style="cyan" if value == best else "dim"),
                )
        table.add_section()
    return Group(table, Text(USE, style="bold yellow"))


def _prediction(one: Prediction, classes: Sequence[str]) -> Mapping[str, Any]:
    if one.probabilities is None:
        return {"image": readable(one.path), "problem": one.problem}
    shares = {name: round(value, 6) for name, value in zip(classes, one.probabilities, strict=True)}
    return {"image": readable(one.path), "probabilities": shares}


def _table(title: str | None) -> Table:
    return Table(title=title, title_justify="left")


def _share(value: float) -> str:
    return f"{value * 100:.1f} %"


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return "–"
    low, high = interval
    return f"{_share(value)} ({low * 100:.0f}–{high * 100:.0f})"

"""`ppdd demo`: the whole flow between two hospitals on one machine, on drawn X-rays or your own.

Hospital A distils its images into a signed package. Hospital B verifies the package, trains a detector from it in
seconds and tries it on its own images. Nothing but the package passes from A to B.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit, err, out, progress_bar
from ppdd_core.cli.dataset import parse_where
from ppdd_core.cli.distill import (
    resumes_when_there_is_room,
    stage_bars,
    summary,
    summary_table,
    warn_of_verdict,
)
from ppdd_core.cli.picture import half_blocks, side_by_side
from ppdd_core.data.dataset import count_shared, load_images
from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.data.phantom import write_phantoms
from ppdd_core.errors import BadConfigError, CheckpointError
from ppdd_core.presets import preset

if TYPE_CHECKING:
    from ppdd_core.data.distilled import DistilledSet
    from ppdd_core.detector.metrics import Metrics

IMAGES_A, IMAGES_B, DRAWN_AT = 3000, 1000, 64
NAME, VERSION = "hospital-a/chest-demo", "0.1.0"

_Rows = tuple[Path, Mapping[str, str]]  # a dataset, and which of its rows


def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Own X-rays instead of drawn ones; then --elsewhere says which are B's."),
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COL=VALUE", help="Rows of --data that are A's.")
    ] = None,
    elsewhere: Annotated[
        list[str] | None, typer.Option(metavar="COL=VALUE", help="Rows of --data that are B's.")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Where everything is kept.")] = Path("demo"),
    ipc: Annotated[int, typer.Option(help="Distilled images per class.")] = 1,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Distil at hospital A, verify, train and test at hospital B; shows tables and the distilled images."""
    recipe = preset("quick", ipc).override({"seed": seed})
    own = _own_rows(data, parse_where(where), parse_where(elsewhere, "--elsewhere"))
    if own:
        _refuse_shared(own, recipe.image_size)
    from ppdd_core.package.build import Usage
    from ppdd_core.package.load import load_package
    from ppdd_core.package.signature import fingerprint, load_or_create_key
    from ppdd_core.pipeline import Identity, Source, distill_package, pick_device

    with resumes_when_there_is_room(folder):
        _belongs(folder, seed)
        a, b = _sources(folder, own, seed)
    key = load_or_create_key(folder / "hospital-a" / "site.pem")
    identity = Identity(
        name=NAME,
        version=VERSION,
        site_id="hospital-a",
        site_name="Hospital A (demo)",
        usage=Usage(licence="CC0-1.0", purposes=("DUO:0000042",)),
        key=key,
    )
    err.print(f"Hospital A distils {ipc} images per class …", style="bold")
    with stage_bars() as show, resumes_when_there_is_room(folder):
        result = distill_package(
            Source(path=a[0], where=a[1]),
            folder / "hospital-a" / "run",
            recipe,
            identity,
            device=pick_device("auto"),
            on_progress=show,
        )
    err.print("Hospital B verifies the package and trains on it …", style="bold")
    package = load_package(result.archive, trusted_key=fingerprint(key))
    metrics = _at_hospital_b(package, b, seed)
    value = summary(result) | {"hospital_b": metrics.to_dict()}
    emit(
        value,
        as_json=as_json,
        render=Group(
            summary_table(result),
            _picture(package),
            _b_table(metrics),
            _next_steps(result.archive, folder),
        ),
    )
    warn_of_verdict(result)


def _own_rows(
    data: Path | None, where: dict[str, str], elsewhere: dict[str, str]
) -> tuple[_Rows, _Rows] | None:
    """Return A's and B's rows of `data`, or None for drawn images; BadConfigError for half of the options."""
    if data is None:
        if where or elsewhere:
            raise BadConfigError("--where and --elsewhere choose rows of --data; give that as well")
        return None
    if not elsewhere:
        raise BadConfigError(
            "--data needs --elsewhere COL=VALUE, which says which of its rows are hospital B's: B tries its "
            "detector on images that A did not train on. With one hospital's images only, use ppdd distill"
        )
    return (data, where), (data, elsewhere)


def _refuse_shared(own: tuple[_Rows, _Rows], image_size: int) -> None:
    """Refuse images or patients that are both A's and B's."""
    with progress_bar("reading images") as update:
        ours, theirs = (
            load_images(path, image_size=image_size, where=rows or None, on_progress=update)[0]
            for path, rows in own
        )
    shared = count_shared(theirs, ours)
    if shared:
        raise BadConfigError(
            f"{shared:,} of hospital B's images (--elsewhere) are A's too, or of A's patients; "
            "choose A's rows with --where so that they share none"
        )


def _belongs(folder: Path, seed: int) -> None:
    """Tie the folder to its seed before anything is drawn; a demo of another seed is refused."""
    path = folder / "demo.json"
    if not path.exists():
        write_atomically(path, json_bytes({"seed": seed}))
        return
    try:
        known = dict(json.loads(path.read_bytes())).get("seed")
    except ValueError:
        raise CheckpointError(
            f"{path} is damaged; delete {folder} or choose another --out"
        ) from None
    if known != seed:
        raise CheckpointError(
            f"{folder} holds a demo of seed {known}; choose another --out for seed {seed}, "
            f"or give --seed {known} to go on with this one"
        )


def _sources(folder: Path, own: tuple[_Rows, _Rows] | None, seed: int) -> tuple[_Rows, _Rows]:
    """Return hospital A's and hospital B's images: `own` rows, or drawn ones."""
    if own is not None:
        return own
    drawn = []
    for site, images in (("a", IMAGES_A), ("b", IMAGES_B)):
        place = folder / f"hospital-{site}" / "images"
        if not place.exists():
            with progress_bar(f"drawing X-rays of hospital {site.upper()}") as update:
                write_phantoms(
                    place,
                    images=images,
                    image_size=DRAWN_AT,
                    seed=seed,
                    site=site,
                    on_progress=update,
                )
        drawn.append((place, dict[str, str]()))
    return drawn[0], drawn[1]


def _at_hospital_b(package: DistilledSet, source: _Rows, seed: int) -> Metrics:
    from ppdd_core.config import DetectorConfig
    from ppdd_core.detector.train import train_detector

    with progress_bar("training the detector") as update:
        detector = train_detector(
            [package],
            net=package.net,
            config=DetectorConfig(epochs=300),
            seed=seed,
            on_progress=update,
        )
    path, where = source
    data, _ = load_images(path, image_size=package.image_size, where=where or None)
    return detector.evaluate(data)


def _picture(package: DistilledSet) -> RenderableType:
    """Return one distilled image per class, drawn in the terminal where it shows colours."""
    if not out.is_terminal or out.color_system != "truecolor":
        return Text()
    grey_IHW = (package.grey_IHW().numpy() * 255).astype(np.uint8)
    labels = package.labels.tolist()
    first = [grey_IHW[labels.index(number)] for number in range(len(package.classes))]
    step = max(1, first[0].shape[0] // 32)
    names = ", ".join(package.classes)
    return Group(
        Text(f"One distilled image each of {names}:"),
        half_blocks(side_by_side([f[::step, ::step] for f in first])),
    )


def _b_table(metrics: Metrics) -> Table:
    table = Table("class", "images", "sensitivity", "specificity", title_justify="left")
    table.title = (
        f"Hospital B's detector, trained on the package alone, on B's own images: accuracy {metrics.accuracy:.3f}, "
        f"balanced {metrics.balanced_accuracy:.3f}"
    )
    value: dict[str, Any] = metrics.to_dict()
    for row in value["per_class"]:
        shares = [
            f"{row[name]:.3f} ({row[f'{name}_interval'][0]:.2f}–{row[f'{name}_interval'][1]:.2f})"
            for name in ("sensitivity", "specificity")
            if row[name] is not None
        ]
        table.add_row(row["class"], str(row["images"]), *shares)
    return table


def _next_steps(archive: Path, folder: Path) -> Text:
    return Text(
        f"\nTry next:\n  ppdd package show {archive}\n  ppdd package verify {archive}\n"
        f"  ppdd detector train {archive} --out {folder / 'hospital-b' / 'detector'}\n",
    )

"""`ppdd distill`, `ppdd teachers train`, `ppdd estimate`, `ppdd presets`: from images to a signed package."""

from __future__ import annotations

import dataclasses
import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import JsonOption, bar_columns, emit, err, parse_pairs, remark
from ppdd_core.cli.dataset import parse_where
from ppdd_core.config import Recipe
from ppdd_core.data.files import ppdd_home
from ppdd_core.detector.wording import METHODS, mean_sd
from ppdd_core.errors import BadConfigError, PpddError
from ppdd_core.presets import PRESETS, preset

if TYPE_CHECKING:
    from ppdd_core.pipeline import Result, StageProgress

DEFAULT_SITE = "local"

teachers_app = typer.Typer(
    help="Teachers: train trajectories several runs can share.", no_args_is_help=True
)

DataPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="Folder, ZIP or CSV manifest of X-rays.")
]
Ipc = Annotated[int, typer.Option(help="Distilled images per class.")]
PresetName = Annotated[str, typer.Option(help="Starting point: " + ", ".join(PRESETS) + ".")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="COL=VALUE", help="Only rows of the manifest with this value; may be repeated."
    ),
]
TestWhere = Annotated[
    list[str] | None,
    typer.Option(metavar="COL=VALUE", help="Test on these rows instead; may be repeated."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any recipe field, e.g. distill.lr_images=300."
    ),
]
Seed = Annotated[int, typer.Option(help="Decides every random choice.")]
Teachers = Annotated[int | None, typer.Option(help="T: teacher networks.")]
TeacherEpochs = Annotated[int | None, typer.Option(help="Epochs each teacher may train.")]
Sigma = Annotated[
    float | None, typer.Option(help="σ: similarity under which a parameter is pruned; 0 = MTT.")
]
SimilarityName = Annotated[str | None, typer.Option(help="Which similarity σ is compared with.")]
InitName = Annotated[
    str | None, typer.Option(help="Start from noise, real or mean (of several real images).")
]
Iterations = Annotated[int | None, typer.Option(help="Distillation steps.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Processes = Annotated[
    int, typer.Option(help="Teachers trained side by side on the CPU; 0 = one per core.")
]


def distill(
    path: DataPath,
    out: Annotated[
        Path, typer.Option(help="Run folder: state while it works, the package at the end.")
    ],
    ipc: Ipc,
    preset_name: Annotated[
        str, typer.Option("--preset", help="Starting point: " + ", ".join(PRESETS))
    ] = "quick",
    where: Where = None,
    test_where: TestWhere = None,
    sigma: Sigma = None,
    similarity: SimilarityName = None,
    init: InitName = None,
    teachers: Teachers = None,
    teacher_epochs: TeacherEpochs = None,
    iterations: Iterations = None,
    seed: Seed = 0,
    device: Device = "auto",
    settings: Set = None,
    name: Annotated[
        str | None, typer.Option(help="Package name SITE/NAME; default from site and data.")
    ] = None,
    version: Annotated[str, typer.Option(help="Package version (semantic versioning).")] = "0.1.0",
    site: Annotated[
        str, typer.Option(envvar="PPDD_SITE", help="This hospital's id.")
    ] = DEFAULT_SITE,
    site_name: Annotated[str | None, typer.Option(help="This hospital's name, for people.")] = None,
    licence: Annotated[
        str, typer.Option(help="Licence of the package (SPDX id or own words).")
    ] = "all rights reserved",
    purpose: Annotated[
        list[str] | None, typer.Option(help="Allowed purpose as a DUO code; may be repeated.")
    ] = None,
    trajectories: Annotated[
        Path | None, typer.Option(help="Folder of teachers shared with other runs.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Signing key; default: $PPDD_HOME/keys/site.pem.")
    ] = None,
    created: Annotated[
        str | None,
        typer.Option(help="Time to state, YYYY-MM-DDTHH:MM:SSZ; default: the first start."),
    ] = None,
    processes: Processes = 0,
    as_json: JsonOption = False,
) -> None:
    """Distil chest X-rays into a signed, verified package. The same command resumes what was interrupted."""
    rows, test_rows = parse_where(where), parse_where(test_where, "--test-where")
    recipe = build_recipe(
        preset_name, ipc, seed, settings,
        {
            "distill.prune_below": sigma,
            "distill.similarity": similarity,
            "distill.init": init,
            "distill.iterations": iterations,
            "teacher.teachers": teachers,
            "teacher.epochs": teacher_epochs,
        },
    )  # fmt: skip
    from ppdd_core.package.build import Usage
    from ppdd_core.package.signature import load_or_create_key
    from ppdd_core.pipeline import Identity, Source, distill_package, pick_device

    site, name = _site_and_name(site, name or _slug(path))
    identity = Identity(
        name=f"{site}/{name}",
        version=version,
        site_id=site,
        site_name=site_name or site,
        usage=Usage(licence=licence, purposes=tuple(purpose or ["DUO:0000006"])),
        key=load_or_create_key(key_file or ppdd_home() / "keys" / "site.pem"),
        created=created,
    )
    with stage_bars() as show, resumes_when_there_is_room(out):
        result = distill_package(
            Source(path=path, where=rows, test_where=test_rows),
            out,
            recipe,
            identity,
            device=pick_device(device),
            trajectories=trajectories,
            processes=processes,
            on_progress=show,
        )
    emit(summary(result), as_json=as_json, render=summary_table(result))
    warn_of_verdict(result)


@teachers_app.command("train")
def train(
    path: DataPath,
    out: Annotated[Path, typer.Option(help="Folder for the trajectories.")],
    preset_name: Annotated[
        str, typer.Option("--preset", help="Starting point: " + ", ".join(PRESETS))
    ] = "quick",
    where: Where = None,
    teachers: Teachers = None,
    teacher_epochs: TeacherEpochs = None,
    seed: Seed = 0,
    device: Device = "auto",
    settings: Set = None,
    processes: Processes = 0,
    as_json: JsonOption = False,
) -> None:
    """Train teachers now; `ppdd distill --trajectories` then uses them, with the same recipe and seed."""
    rows = parse_where(where)
    recipe = build_recipe(
        preset_name,
        1,
        seed,
        settings,
        {"teacher.teachers": teachers, "teacher.epochs": teacher_epochs},
    )
    from ppdd_core.pipeline import Source, load_split, pick_device, teach
    from ppdd_core.run_folder import resumable

    with stage_bars() as show, resumes_when_there_is_room(out), resumable(out):
        images = load_split(Source(path=path, where=rows), recipe, on_progress=show)
        images.findings.refuse_errors()
        store = teach(
            images, recipe, out, device=pick_device(device), processes=processes, on_progress=show
        )
    last = [store.info(t, recipe.used_epochs).accuracy for t in range(recipe.teacher.teachers)]
    value = {
        "folder": str(out),
        "teachers": recipe.teacher.teachers,
        "epochs": recipe.used_epochs,
        "bytes": store.size(),
        "balanced_accuracy": last,
    }
    text = Text(
        f"{len(last)} teachers of {recipe.used_epochs} epochs in {out} ({store.size() / 2**20:.0f} MiB); "
        f"balanced accuracy at the end {min(last):.2f} to {max(last):.2f}"
    )
    emit(value, as_json=as_json, render=text)


def presets(
    ipc: Ipc = 10,
    as_json: JsonOption = False,
) -> None:
    """Show every preset with all its recipe fields."""
    recipes = {name: flat(preset(name, ipc).to_dict()) for name in PRESETS}
    table = Table(title=f"Presets at {ipc} images per class", title_justify="left")
    table.add_column("field", no_wrap=True, min_width=max(map(len, recipes["paper"])))
    for name in recipes:
        table.add_column(name, overflow="fold")
    for field in recipes["paper"]:
        values = [str(recipe[field]) for recipe in recipes.values()]
        table.add_row(field, *values)
    emit(recipes, as_json=as_json, render=table)


def estimate(
    path: DataPath,
    ipc: Ipc,
    preset_name: Annotated[
        str, typer.Option("--preset", help="Starting point: " + ", ".join(PRESETS))
    ] = "quick",
    where: Where = None,
    sigma: Sigma = None,
    similarity: SimilarityName = None,
    init: InitName = None,
    teachers: Teachers = None,
    teacher_epochs: TeacherEpochs = None,
    iterations: Iterations = None,
    seed: Seed = 0,
    device: Device = "auto",
    settings: Set = None,
    processes: Processes = 0,
    as_json: JsonOption = False,
) -> None:
    """Say what a distillation will take here: time, peak memory, disk, package size. Measures for seconds.

    Takes the recipe options of `ppdd distill`.
    """
    rows = parse_where(where)
    recipe = build_recipe(
        preset_name, ipc, seed, settings,
        {
            "distill.prune_below": sigma,
            "distill.similarity": similarity,
            "distill.init": init,
            "distill.iterations": iterations,
            "teacher.teachers": teachers,
            "teacher.epochs": teacher_epochs,
        },
    )  # fmt: skip
    from ppdd_core.estimate import estimate_run
    from ppdd_core.pipeline import Source, load_split, pick_device

    with stage_bars() as show:
        images = load_split(Source(path=path, where=rows), recipe, on_progress=show)
    images.findings.refuse_errors()
    found = estimate_run(recipe, images.split, device=pick_device(device), processes=processes)
    table = Table(
        show_header=False, title=f"{recipe.preset}, {ipc} images per class", title_justify="left"
    )
    for stage, seconds in found.seconds.items():
        table.add_row(stage, duration(seconds))
    table.add_row("in all", duration(found.total_seconds), style="bold")
    table.add_row("peak memory", f"{found.peak_bytes / 2**20:,.0f} MiB")
    table.add_row("disk", f"{found.disk_bytes / 2**20:,.0f} MiB")
    table.add_row("package", f"{found.package_bytes / 2**20:,.1f} MiB")
    emit(
        dataclasses.asdict(found) | {"total_seconds": found.total_seconds},
        as_json=as_json,
        render=table,
    )


# ------------------------------------------------------------------------------------- shared


def build_recipe(
    name: str,
    ipc: int,
    seed: int,
    settings: list[str] | None,
    options: Mapping[str, str | float | None],
) -> Recipe:
    """Return preset + options + `--set`, in that order; BadConfigError names what cannot be."""
    chosen = {field: value for field, value in options.items() if value is not None}
    given: dict[str, str | int | float] = {"seed": seed, **chosen}
    given |= parse_pairs("--set", settings or [])
    return preset(name, ipc).override(given)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested recipe as dotted fields."""
    fields: dict[str, Any] = {}
    for name, inner in value.items():
        fields |= (
            flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {prefix + name: inner}
        )
    return fields


def duration(seconds: float) -> str:
    """Return seconds as people say them: 48 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def stage_bars() -> Iterator[Callable[[StageProgress], None]]:
    """One progress bar per stage, with ETA, on stderr; a line per finished stage where there is no terminal."""
    with Bars(*bar_columns(), console=err, disable=not err.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def show(progress: StageProgress) -> None:
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total, note="")
                if not err.is_terminal:
                    err.print(f"{progress.stage} …")
            bars.update(
                tasks[progress.stage],
                completed=progress.done,
                total=progress.total,
                note=progress.note,
            )

        yield show


@contextmanager
def resumes_when_there_is_room(out: Path) -> Iterator[None]:
    """Turn a full disk into a message that says where, and that the same command then goes on."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = error.filename or f"while writing to {out} or to {ppdd_home() / 'cache'}"
        raise PpddError(
            f"the disk is full ({where}). What was finished is kept: make room, then run the same command "
            "again to go on from there"
        ) from error


def warn_of_verdict(result: Result) -> None:
    """Say on stderr that the privacy verdict is `failed`: the package is there all the same."""
    if result.privacy["verdict"] != "passed":
        reasons = "; ".join(result.privacy["reasons"])
        remark(f"warning: the privacy verdict is failed: {reasons}; look before you release")


def summary(result: Result) -> dict[str, Any]:
    """Return what `--json` prints of a finished run."""
    return {
        "package": result.manifest.name,
        "version": result.manifest.version,
        "folder": str(result.folder),
        "archive": str(result.archive),
        "bytes": result.archive.stat().st_size,
        "learning_rate": result.manifest.learning_rate,
        "evaluation": result.evaluation["summary"],
        "privacy": {"verdict": result.privacy["verdict"], "reasons": result.privacy["reasons"]},
    }


def summary_table(result: Result) -> RenderableType:
    """Return a finished run for people: how good, how private, where it lies."""
    verdict = result.privacy["verdict"]
    return Group(
        evaluation_table(
            f"{result.manifest.name} {result.manifest.version}, on {result.evaluation['images']:,} test images",
            result.evaluation["summary"],
        ),
        Text.assemble(
            "privacy report: ", (verdict, "green" if verdict == "passed" else "bold red")
        ),
        *(Text(f"  {reason}") for reason in result.privacy["reasons"]),
        Text(f"package: {result.archive} ({result.archive.stat().st_size / 2**10:,.0f} KiB)"),
        Text(f"contact sheet: {result.folder / 'previews' / 'contact-sheet.png'}"),
    )


def evaluation_table(title: str, summary: Sequence[Mapping[str, Any]]) -> Table:
    """Return the summary of an evaluation for people, ours in bold."""
    table = Table(
        "trained on", "per class", "accuracy", "balanced accuracy", "macro AUROC",
        title=title, title_justify="left",
    )  # fmt: skip
    for row in summary:
        per_class = row["images_per_class"]
        table.add_row(
            METHODS[row["method"]],
            "all" if per_class is None else str(per_class),
            *(mean_sd(row[name]) for name in ("accuracy", "balanced_accuracy", "macro_auroc")),
            style="bold" if row["method"] in ("distilled", "mtt_unpruned") else None,
        )
    return table


def _site_and_name(site: str, name: str) -> tuple[str, str]:
    """Return both parts of a package name; `--name` may be given as SITE/NAME."""
    before, slash, after = name.partition("/")
    if not slash:
        return site, name
    if site not in (DEFAULT_SITE, before):
        raise BadConfigError(f"--name {name} is of site {before!r}, --site says {site!r}")
    return before, after


def _slug(path: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.resolve().stem.lower()).strip("-") or "package"

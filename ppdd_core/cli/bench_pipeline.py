"""`ppdd bench pipeline`: how long until our images teach as much as the reference's, teachers included."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.benchmark.case import check_reference
from ppdd_core.benchmark.ledger import DISTILLATION, TEACHERS
from ppdd_core.benchmark.plan import Plan
from ppdd_core.benchmark.race import Course, course, extrapolated, measured
from ppdd_core.cli.console import JsonOption, emit, progress_bar, remark
from ppdd_core.cli.dataset import parse_where
from ppdd_core.cli.distill import Device, Where, build_recipe
from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.errors import BadConfigError
from ppdd_core.sweep.svg import Point, Series, plot

if TYPE_CHECKING:
    from ppdd_core.benchmark.whole import Side
    from ppdd_core.config import Recipe

SIDES = ("both", "ours", "reference")
REPORT, PLOT = "pipeline.json", "pipeline.svg"


def pipeline(
    data: Annotated[Path, typer.Option(help="Folder, ZIP or CSV manifest of X-rays.")],
    out: Annotated[Path, typer.Option(help="Folder of both runs; the same command goes on there.")],
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A clone of GeorgeCazenavette/mtt-distillation."),
    ] = None,
    where: Where = None,
    side: Annotated[str, typer.Option(help="What to run now: both, ours or reference.")] = "both",
    preset_name: Annotated[
        str,
        typer.Option("--preset", help="Our recipe; its network and image size are both sides'."),
    ] = "small",
    ipc: Annotated[int, typer.Option(help="Images per class, both sides.")] = 5,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field of our recipe."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every random choice.")] = 0,
    experts: Annotated[int, typer.Option(help="Reference: networks (its default: 100).")] = 10,
    epochs: Annotated[int, typer.Option(help="Reference: epochs of each (its default: 50).")] = 20,
    iterations: Annotated[
        int, typer.Option(help="Reference: distillation steps (its default: 5000).")
    ] = 300,
    syn_steps: Annotated[int, typer.Option(help="Reference: J.")] = 20,
    expert_epochs: Annotated[int, typer.Option(help="Reference: K.")] = 2,
    max_start_epoch: Annotated[int, typer.Option(help="Reference: I⁺.")] = 10,
    lr_img: Annotated[float, typer.Option(help="Reference: step size of the images.")] = 1000.0,
    lr_lr: Annotated[float, typer.Option(help="Reference: step size of α.")] = 1e-5,
    lr_teacher: Annotated[
        float, typer.Option(help="Reference: step size of experts, and first α.")
    ] = 0.01,
    batch_train: Annotated[int, typer.Option(help="Reference: mini-batch of experts.")] = 256,
    batch_syn: Annotated[
        int, typer.Option(help="Reference: images of a student step; 0 = all, its default.")
    ] = 0,
    snapshots: Annotated[int, typer.Option(help="Points of a curve.", min=1, max=200)] = 12,
    device: Device = "auto",
    processes: Annotated[
        int, typer.Option(help="Ours: teachers side by side on the CPU; 0 = one per core.", min=0)
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Time ours until it teaches as much as the reference's whole run does, on the same images and network.

    Teachers included, evaluations not. Stopped, the same command goes on; the report and a plot lie in --out.
    """
    if side not in SIDES:
        raise BadConfigError(f"--side must be one of {', '.join(SIDES)}, got {side!r}")
    if side != "ours":
        if reference is None:
            raise BadConfigError(
                "--reference: give a clone of https://github.com/GeorgeCazenavette/mtt-distillation, "
                "or run --side ours"
            )
        check_reference(reference)
    recipe = build_recipe(preset_name, ipc, seed, settings, {})
    plan = Plan(
        experts=experts, epochs=epochs, iterations=iterations, syn_steps=syn_steps,
        expert_epochs=expert_epochs, max_start_epoch=max_start_epoch, lr_img=lr_img, lr_lr=lr_lr,
        lr_teacher=lr_teacher, batch_train=batch_train, batch_syn=batch_syn,
    )  # fmt: skip
    import torch

    from ppdd_core.benchmark.whole import Side, run_ours, run_reference
    from ppdd_core.pipeline import Source, load_split, pick_device, snapshot_steps
    from ppdd_core.run_folder import resumable

    rows, place = parse_where(where), pick_device(device)
    ours, theirs = Side(out / "ours"), Side(out / "reference")
    with resumable(out):
        images = load_split(Source(path=data, where=rows), recipe)
        if side in ("both", "ours"):
            kept = snapshot_steps(recipe.distill.iterations, snapshots)
            with _bar("ours") as show:
                run_ours(images, recipe, ours, kept, place, processes, show)
                ours.snapshots.score(images, recipe, place, show)
        if reference is not None and side in ("both", "reference"):
            kept = snapshot_steps(plan.iterations, snapshots)
            with _bar("reference") as show:
                run_reference(images, recipe, plan, reference.absolute(), theirs, kept, place, show)
                theirs.snapshots.score(images, recipe, place, show)
        value = report(
            _course(
                ours, recipe.teacher.teachers, recipe.used_epochs, recipe.distill.iterations
            ),
            _course(theirs, plan.experts, plan.epochs, plan.iterations),
            recipe,
            plan,
        )  # fmt: skip
        value["data"] = {
            "where": dict(rows or {}), "train": len(images.split.train),
            "validation": len(images.split.validation), "classes": list(images.split.train.classes),
        }  # fmt: skip
        value |= {
            "device": str(place), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
            "processes_of_our_teachers": processes or os.cpu_count(),
        }  # fmt: skip
        write_atomically(out / REPORT, json_bytes(value))
        write_atomically(out / PLOT, _plot(value).encode())
    remark(f"{out / REPORT}, {out / PLOT}")
    emit(value, as_json=as_json, render=_table(value))


def report(ours: Course, theirs: Course, recipe: Recipe, plan: Plan) -> dict[str, Any]:
    """Return the comparison for JSON; what is not finished yet is not compared."""
    value: dict[str, Any] = {
        "what": f"{recipe.preset}, {recipe.image_size} px, ConvNet D{recipe.net.depth} W{recipe.net.width}, "
        f"{recipe.distill.images_per_class} images per class, seed {recipe.seed}",
        "recipe": recipe.to_dict(),
        "reference_recipe": dataclasses.asdict(plan),
        "sides": {"ours": ours.to_dict(), "reference": theirs.to_dict()},
    }
    if ours.finished and theirs.finished:
        value["measured"] = measured(ours, theirs)
    if theirs.teachers and theirs.steps:
        value["extrapolated"] = extrapolated(ours, theirs, plan)
    return value


@contextmanager
def _bar(name: str) -> Iterator[Callable[[str, int, int], None]]:
    with progress_bar(name) as update:
        yield lambda stage, done, of: update(done, of, note=stage)


def _course(side: Side, teachers: int, epochs: int, steps: int) -> Course:
    kept = len(list(side.store.folder.glob("*/epoch-*.safetensors")))
    return course(
        side.ledger.units(TEACHERS), side.ledger.units(DISTILLATION), side.snapshots.scores(),
        epochs_wanted=teachers * epochs, steps_wanted=steps, snapshots=kept,
        teacher_bytes=side.store.size(),
    )  # fmt: skip


def _plot(value: Mapping[str, Any]) -> str:
    series = [
        Series(
            name,
            [Point(one["seconds"], one["balanced_accuracy"], one["sd"]) for one in side["curve"]],
            level=name == "reference" and "measured" in value,
        )
        for name, side in value["sides"].items()
    ]
    return plot(
        value["what"], series, x="seconds, teachers included", y="balanced accuracy, validation",
        logarithmic=True,
    )  # fmt: skip


def _table(value: Mapping[str, Any]) -> RenderableType:
    table = Table(title=value["what"], title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("teachers s", "steps s", "in all s", "teachers MiB", "balanced accuracy"):
        table.add_column(name, justify="right")
    for name, one in value["sides"].items():
        last = one["curve"][-1] if one["curve"] else None
        table.add_row(
            name if one["finished"] else f"{name} (unfinished)",
            f"{one['teachers']['seconds']:,.0f}",
            f"{one['distillation']['seconds']:,.0f}",
            f"{one['seconds']:,.0f}",
            f"{one['teachers']['bytes'] / 2**20:,.1f}",
            f"{last['balanced_accuracy']:.3f}" if last else "–",
        )
    return Group(table, *(Text(line) for line in _findings(value)))


def _findings(value: Mapping[str, Any]) -> list[str]:
    lines = []
    plan = value["reference_recipe"]
    scale = f"{plan['experts']} experts × {plan['epochs']} epochs, {plan['iterations']} steps"
    if run := value.get("measured"):
        target = f"{run['target_balanced_accuracy']:.3f}"
        if run["time_ratio"] is None:
            lines.append(f"run ({scale}): ours never reached the reference's {target}")
        else:
            lines.append(
                f"run ({scale}): ours reached the reference's {target} after {run['ours_first_seconds']:,.0f} s "
                f"of {run['reference_seconds']:,.0f} s: {run['time_ratio']:.3f} ×"
                + (
                    f" ({run['cpu_time_ratio']:.3f} × of processor time)"
                    if "cpu_time_ratio" in run
                    else ""
                )
                + "; "
                f"teachers on disk {run['teacher_bytes_ratio']:.3f} ×"
            )
    if more := value.get("extrapolated"):
        counts = more["counts"]
        line = (
            f"not run, extrapolated to the reference's {counts['experts']} experts × {counts['epochs']} epochs, "
            f"{counts['iterations']:,} steps: {more['reference_seconds']:,.0f} s, "
            f"{more['reference_teacher_bytes'] / 2**20:,.0f} MiB of teachers"
        )
        if more.get("time_ratio") is not None:
            line += f"; our whole run is {more['time_ratio']:.4f} × and {more['teacher_bytes_ratio']:.4f} ×"
        lines.append(line)
    return lines

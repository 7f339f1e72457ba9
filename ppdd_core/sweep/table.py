"""From the files of a sweep to the numbers of its report: the same files give the same numbers.

Mean ± sample standard deviation over all networks of all seeds. Cells that failed, or are not there yet, stay in the
table with their reason. `best on validation` is what a hospital would ship that tried every configuration: for every
seed the set with the best balanced accuracy on the validation images, which alone is then read on the test images.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppdd_core.detector.wording import METHODS
from ppdd_core.sweep.plan import CellPlan, Piece, Plan, row_label
from ppdd_core.sweep.work import finished

FIGURES = ("accuracy", "balanced_accuracy", "macro_auroc", "calibration_error")
BEST = "best on validation"
REAL = {name: METHODS[name] for name in ("random_real", "k_centre", "full_data")}
NOT_YET = "not computed yet"
POINTS = 80  # of a curve


def summarise(plan: Plan, out: Path, failures: Mapping[str, str], *, on: str) -> dict[str, Any]:
    """Return all numbers of the report; `failures` are the reasons of failed pieces, by file."""
    several = len({c.cell.configuration.similarity for c in plan.cells} - {""}) > 1
    entries = _entries_of_cells(plan, out, failures, several)
    real = _entries_of_real(plan, out, failures)
    best, chosen = _best(entries) if on == "test" else ([], [])
    rows = _rows([*entries, *best, *real])
    full = {
        row["architecture"]: row["balanced_accuracy"]["mean"]
        for row in rows
        if row["label"] == REAL["full_data"]
    }
    for row in rows:
        whole, mean = full.get(row["architecture"]), row["balanced_accuracy"]["mean"]
        row["share_of_all_real"] = round(mean / whole, 4) if whole and mean is not None else None
    return {
        "measured_on": on,
        "images_measured": sorted(
            {e["measured_on"] for e in [*entries, *real] if e["measured_on"]}
        ),
        "table": rows,
        "chosen": chosen,
        "cells": [_cell(one, out, failures, several) for one in plan.cells],
        "teachers": _teachers(plan, out, failures),
    }


def curves(plan: Plan, out: Path, *, seed: int) -> dict[int, dict[str, list[dict[str, float]]]]:
    """Return the history of one seed's distillations by images per class and row, as means over equal parts."""
    several = len({c.cell.configuration.similarity for c in plan.cells} - {""}) > 1
    found: dict[int, dict[str, list[dict[str, float]]]] = {}
    for one in plan.cells:
        history = (out / one.distillation.file).with_name("history.jsonl")
        if one.cell.seed != seed or not history.exists():
            continue
        steps = [json.loads(line) for line in history.read_text().splitlines()]
        each = -(-len(steps) // POINTS)
        parts = [steps[at : at + each] for at in range(0, len(steps), each)]
        found.setdefault(one.cell.per_class, {})[_label(one, several)] = [
            {
                name: statistics.fmean(float(step[name]) for step in part)
                for name in ("step", "loss", "pruned", "lr")
            }
            for part in parts
        ]
    return found


def sheets(plan: Plan, out: Path, *, seed: int) -> list[tuple[int, str, list[tuple[int, Path]]]]:
    """Return (images per class, row, [(step, PNG)]) of one seed."""
    several = len({c.cell.configuration.similarity for c in plan.cells} - {""}) > 1
    found = []
    for one in plan.cells:
        folder = (out / one.distillation.file).parent / "sheets"
        drawn = [(int(file.stem.removeprefix("step-")), file) for file in folder.glob("step-*.png")]
        if one.cell.seed == seed and drawn:
            found.append((one.cell.per_class, _label(one, several), sorted(drawn)))
    return found


def failed(one: Mapping[str, Any]) -> bool:
    """Tell whether a cell, or a seed of a row, has no result because it failed, and not because it waits."""
    return one["why"] not in (None, NOT_YET)


# ------------------------------------------------------------------------------------------ rows


def _label(one: CellPlan, several: bool) -> str:
    return f"distilled, {row_label(one.cell.configuration, similarity=several)}"


def _entries_of_cells(
    plan: Plan, out: Path, failures: Mapping[str, str], several: bool
) -> list[dict[str, Any]]:
    """Return one value per cell: what it is, and its networks or why it has none."""
    found = []
    for one in plan.cells:
        report = finished(one.evaluation, out)
        size = finished(one.distillation, out) or {}
        found.append(
            {
                "label": _label(one, several),
                "kind": "distilled",
                "per_class": one.cell.per_class,
                "seed": one.cell.seed,
                "bytes": size.get("bytes"),
                "results": report["results"] if report else [],
                "measured_on": report["measured_on"] if report else None,
                "why": None if report else _why(one.evaluation, one.distillation, failures),
            }
        )
    return found


def _entries_of_real(plan: Plan, out: Path, failures: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for one in sorted(plan.real, key=lambda one: list(REAL).index(one.method)):
        report = finished(one.piece, out)
        of = f", {one.variant}" if one.variant else ""
        found.append(
            {
                "label": REAL[one.method] + of,
                "kind": "all" if one.per_class is None else "real",
                "per_class": one.per_class,
                "seed": one.seed,
                "bytes": report["bytes"] if report else None,
                "results": report["results"] if report else [],
                "measured_on": report["measured_on"] if report else None,
                "why": None if report else _why(one.piece, one.piece, failures),
            }
        )
    return found


def _why(piece: Piece, before: Piece, failures: Mapping[str, str]) -> str:
    return failures.get(before.file) or failures.get(piece.file) or NOT_YET


def _best(entries: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the entry that validation prefers, per number of images and seed; none where there is no choice."""
    if len({entry["label"] for entry in entries}) < 2:
        return [], []
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["per_class"], entry["seed"]), []).append(entry)
    best, chosen = [], []
    for (per_class, seed), candidates in groups.items():
        known = [entry for entry in candidates if entry["results"]]
        if not known:
            best.append({**candidates[0], "label": BEST, "kind": "best"})
            continue
        winner = max(known, key=_validation)
        best.append({**winner, "label": BEST, "kind": "best"})
        chosen.append(
            {
                "images_per_class": per_class,
                "seed": seed,
                "chosen": winner["label"],
                "validation": {entry["label"]: round(_validation(entry), 6) for entry in known},
                "candidates_without_result": [
                    entry["label"] for entry in candidates if not entry["results"]
                ],
            }
        )
    return best, chosen


def _validation(entry: Mapping[str, Any]) -> float:
    own = entry["results"][0]["architecture"]  # the network it was distilled for comes first
    return statistics.fmean(
        float(one["validation_balanced_accuracy"])
        for one in entry["results"]
        if one["architecture"] == own
    )


def _rows(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per label, number of images and architecture, in the order in which they first come."""
    groups: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault((entry["label"], entry["per_class"]), []).append(entry)
    rows = []
    for (label, per_class), of_row in groups.items():
        networks = [result for entry in of_row for result in entry["results"]]
        without = [{"seed": e["seed"], "why": e["why"]} for e in of_row if e["why"]]
        sizes = [entry["bytes"] for entry in of_row if entry["bytes"]]
        for architecture in dict.fromkeys(one["architecture"] for one in networks) or [None]:
            some = [one for one in networks if one["architecture"] == architecture]
            rows.append(
                {
                    "label": label,
                    "kind": of_row[0]["kind"],
                    "images_per_class": per_class,
                    "architecture": architecture,
                    "networks": len(some),
                    "seeds": len(of_row) - len(without),
                    "without": without,
                    "bytes": round(statistics.fmean(sizes)) if sizes else None,
                    **{name: _mean_sd([one[name] for one in some]) for name in FIGURES},
                }
            )
    return rows


def _mean_sd(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return {"mean": None, "sd": None}
    sd = round(statistics.stdev(known), 6) if len(known) > 1 else None
    return {"mean": round(statistics.fmean(known), 6), "sd": sd}


# ----------------------------------------------------------------------------------------- cells


def _cell(one: CellPlan, out: Path, failures: Mapping[str, str], several: bool) -> dict[str, Any]:
    report = finished(one.distillation, out)
    value = {
        "seed": one.cell.seed,
        "images_per_class": one.cell.per_class,
        "label": _label(one, several),
        "recipe": one.cell.recipe.to_dict(),
        "result": report,
        "evaluation_seconds": (finished(one.evaluation, out) or {}).get("seconds"),
        "why": None,
        "estimated_seconds": None,
    }
    if report is None or finished(one.evaluation, out) is None:
        value["why"] = _why(one.evaluation, one.distillation, failures)
    if one.estimate and (out / one.estimate).exists():
        estimated = json.loads((out / one.estimate).read_bytes())["report"]["estimated"]
        value["estimated_seconds"] = estimated["distillation"]
    return value


def _teachers(plan: Plan, out: Path, failures: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one value per set of teachers: seconds of one core or GPU, as measured and as estimated."""
    sets: dict[str, list[Piece]] = {}
    estimates: dict[str, str] = {}
    for one in plan.cells:
        folder = one.teachers[0].teachers
        sets.setdefault(folder, list(one.teachers))
        if one.cell.recipe.used_epochs == one.teachers[0].recipe.used_epochs:
            estimates.setdefault(folder, one.estimate)
    return [
        _set_of_teachers(folder, pieces, estimates.get(folder, ""), out, failures)
        for folder, pieces in sets.items()
    ]


def _set_of_teachers(
    folder: str, pieces: Sequence[Piece], estimate: str, out: Path, failures: Mapping[str, str]
) -> dict[str, Any]:
    reports = [finished(piece, out) for piece in pieces]
    known = [report for report in reports if report is not None]
    taken = [report["seconds"] * report["side_by_side"] for report in known if "seconds" in report]
    value: dict[str, Any] = {
        "seed": pieces[0].recipe.seed,
        "folder": folder,
        "teachers": sum(len(piece.numbers) for piece in pieces),
        "epochs": pieces[0].recipe.used_epochs,
        "balanced_accuracy": [a for report in known for a in report["balanced_accuracy"]],
        # known where every one of them was trained as it is divided now
        "seconds": round(sum(taken), 2) if len(taken) == len(pieces) else None,
        "estimated_seconds": None,
        "why": None,
    }
    if len(known) < len(pieces):
        value["why"] = next((failures[p.file] for p in pieces if p.file in failures), NOT_YET)
    if estimate and (out / estimate).exists():
        # the estimate is of one process: its teachers come one after the other
        report = json.loads((out / estimate).read_bytes())["report"]
        value["estimated_seconds"] = report["estimated"]["teachers"]
    return value


def provenance(plan: Plan, out: Path) -> dict[str, list[str]]:
    """Return every commit, torch version and device that results of the plan were computed with."""
    reports = [finished(piece, out) for piece in plan.pieces]
    known = [report for report in reports if report is not None]
    return {
        name: sorted({str(report[name]) for report in known if name in report})
        for name in ("commit", "torch", "device")
    }

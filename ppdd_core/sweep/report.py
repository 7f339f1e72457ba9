"""The report of a sweep: the paper's Table 1, plots, what every cell took, contact sheets; HTML, Markdown, JSON."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.detector.wording import mean_sd
from ppdd_core.sweep.grid import Grid
from ppdd_core.sweep.page import (
    Block,
    Drawing,
    Heading,
    Paragraph,
    Picture,
    Strip,
    Table,
    files,
    to_html,
    to_markdown,
)
from ppdd_core.sweep.plan import Plan
from ppdd_core.sweep.svg import Point, Series, bytes_text, plot
from ppdd_core.sweep.table import (
    BEST,
    curves,
    failed,
    provenance,
    sheets,
    summarise,
)
from ppdd_core.sweep.work import commit

TITLE = "Sweep: distilled against real images"
FIGURES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_auroc": "Macro AUROC",
}
STEPS_SHOWN = 4  # contact sheets of one distillation in the report
MOST_SHEETS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a report says of how it came about."""

    command: str
    processes: int
    threads: int  # of each; 0 = all cores


def write_report(
    grid: Grid,
    plan: Plan,
    out: Path,
    to: Path,
    failures: Mapping[str, str],
    circumstances: Circumstances,
    *,
    on: str,
) -> dict[str, Any]:
    """Write report.md, report.html, report.json and figures/ into `to`; return what report.json holds."""
    figures = summarise(plan, out, failures, on=on)
    value = {
        "command": circumstances.command,
        "commit": commit(),
        "machine": machine(),
        "processes": circumstances.processes,
        "threads": circumstances.threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "computed_with": provenance(plan, out),
        "grid": dataclasses.asdict(grid),
        "figures": figures,
    }
    blocks = list(_blocks(grid, plan, out, value))
    folder = to / "figures"
    for name, content in files(blocks):
        write_atomically(folder / name, content)
    write_atomically(to / "report.json", json_bytes(value))
    write_atomically(to / "report.md", to_markdown(TITLE, blocks, folder="figures").encode())
    write_atomically(to / "report.html", to_html(TITLE, blocks).encode())
    return value


def machine() -> str:
    """Return what the machine is, without its name."""
    parts = [f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}"]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        parts += [f"{names.count(name)} × {name}" for name in dict.fromkeys(names)]
    return ", ".join(parts)


def _blocks(grid: Grid, plan: Plan, out: Path, value: Mapping[str, Any]) -> list[Block]:
    figures = value["figures"]
    seed = grid.seeds[0]
    return [
        *_head(grid, value),
        *_table_one(figures),
        *_against_bytes(figures),
        *_other_networks(figures),
        *_chosen(figures),
        *_histories(plan, out, seed),
        *_cells(figures),
        *_estimates(figures),
        *_sheets(plan, out, seed, figures),
    ]


def _head(grid: Grid, value: Mapping[str, Any]) -> list[Block]:
    figures, used = value["figures"], value["computed_with"]
    on = figures["measured_on"]
    images = " or ".join(f"{count:,}" for count in figures["images_measured"]) or "no"
    looked = (
        "looked at once per finished network"
        if on == "test"
        else "to choose recipes by; no test image was looked at, and figures on the images that decide are optimistic"
    )
    seeds = len(grid.seeds)
    text = (
        f"Preset {grid.preset}; {seeds} seed{'s' if seeds != 1 else ''}, each with its own train and validation split, "
        f"teachers, distillations and networks. Measured on {images} {on} images, {looked}. "
        "Mean ± sample standard deviation over all networks of all seeds."
    )
    where = (
        f"Report written at commit {value['commit']}, pieces computed at {', '.join(used['commit']) or '–'}; "
        f"{value['machine']}, torch {', '.join(used['torch']) or value['torch']}; {value['processes']} "
        f"process{'es' if value['processes'] != 1 else ''} of {value['threads']} threads on "
        f"{', '.join(used['device']) or '–'}. The recipe of every cell is in report.json."
    )
    return [Paragraph(value["command"], code=True), Paragraph(text), Paragraph(where)]


# --------------------------------------------------------------------------------------- Table 1


def _table_one(figures: Mapping[str, Any]) -> list[Block]:
    rows = _own_network(figures)
    sizes = sorted({r["images_per_class"] for r in rows if r["images_per_class"] is not None})
    few = {r["label"]: r["kind"] for r in rows if r["images_per_class"] is not None}
    blocks: list[Block] = [Heading("Table 1")]
    tables = [
        *FIGURES.items(),
        ("share_of_all_real", "Share of all real images' balanced accuracy"),
    ]
    for name, caption in tables:
        lines = []
        for label in few:
            at = {r["images_per_class"]: r for r in rows if r["label"] == label}
            lines.append([label, *(_cell_text(at.get(size), name) for size in sizes)])
        whole = [r for r in rows if r["kind"] == "all"]
        if name != "share_of_all_real":
            for row in whole:
                lines.append([f"{row['label']}", _cell_text(row, name), *[""] * (len(sizes) - 1)])
        elif not whole:
            continue
        ours = frozenset(n for n, kind in enumerate(few.values()) if kind in ("distilled", "best"))
        head = ["trained on", *(f"IPC {size}" for size in sizes)]
        blocks.append(Table(head, lines, ours, caption))
    return [*blocks, *_missing(rows)]


def _own_network(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the networks that sets were distilled for: the first ones of each label."""
    seen, rows = set(), []
    for row in figures["table"]:
        if (row["label"], row["images_per_class"]) not in seen:
            seen.add((row["label"], row["images_per_class"]))
            rows.append(row)
    return rows


def _cell_text(row: Mapping[str, Any] | None, name: str) -> str:
    if row is None:
        return ""
    if not row["networks"]:
        return "failed" if any(failed(one) for one in row["without"]) else "–"
    if name == "share_of_all_real":
        share = row[name]
        return "–" if share is None else f"{share:.0%}"
    missing = "*" if row["without"] else ""
    return mean_sd(row[name]) + missing


def _missing(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Say which cells have no result, and why."""
    lines = [
        [row["label"], str(row["images_per_class"] or "all"), str(one["seed"]), one["why"]]
        for row in rows
        for one in row["without"]
        if row["label"] != BEST
    ]
    if not lines:
        return []
    caption = "Without a result (a star in the tables: mean of the seeds that have one)"
    return [Table(["trained on", "IPC", "seed", "why"], lines, caption=caption)]


def _chosen(figures: Mapping[str, Any]) -> list[Block]:
    if not figures["chosen"]:
        return []
    lines = [
        [
            f"IPC {one['images_per_class']}, seed {one['seed']}",
            one["chosen"],
            f"{max(one['validation'].values()):.3f}",
            str(len(one["validation"])),
        ]
        for one in figures["chosen"]
    ]
    return [
        Heading("What validation chose"),
        Paragraph(
            f"The row “{BEST}” is, for every seed, the distilled set with the best balanced accuracy on the validation "
            "images among all candidates; the losing ones are in the tables too."
        ),
        Table(["", "chosen", "on validation", "candidates"], lines),
    ]


# ----------------------------------------------------------------------------------------- plots


def _against_bytes(figures: Mapping[str, Any]) -> list[Block]:
    rows = [row for row in _own_network(figures) if row["networks"] and row["bytes"]]
    series = []
    for label in dict.fromkeys(row["label"] for row in rows):
        points = [
            Point(row["bytes"], row["balanced_accuracy"]["mean"], row["balanced_accuracy"]["sd"])
            for row in rows
            if row["label"] == label and row["balanced_accuracy"]["mean"] is not None
        ]
        kinds = {row["kind"] for row in rows if row["label"] == label}
        series.append(Series(label, sorted(points, key=lambda p: p.x), level="all" in kinds))
    drawn = plot(
        "Balanced accuracy against bytes",
        series,
        x="bytes of the images (logarithmic)",
        y="balanced accuracy",
        logarithmic=True,
        x_text=bytes_text,
    )
    if not drawn:
        return []
    return [
        Heading("Accuracy against bytes"),
        Drawing(
            "accuracy-against-bytes",
            drawn,
            "Balanced accuracy (mean ± sd) against the bytes of what networks were trained on: distilled images and "
            "labels as float32, as a package has them; real images as decoded grey bytes of the same size in pixels.",
        ),
    ]


def _histories(plan: Plan, out: Path, seed: int) -> list[Block]:
    found = curves(plan, out, seed=seed)
    blocks: list[Block] = []
    one_row = len({label for rows in found.values() for label in rows}) <= 1
    groups: dict[str, dict[str, list[dict[str, float]]]] = {}
    for per_class, rows in sorted(found.items()):
        for label, points in rows.items():
            name = "" if one_row else f", IPC {per_class}"
            line = f"IPC {per_class}" if one_row else label.removeprefix("distilled, ")
            groups.setdefault(name, {})[line] = points
    for name, lines in groups.items():
        for figure, text in (("loss", "Matching loss"), ("pruned", "Share of parameters pruned")):
            series = [
                Series(line, [Point(p["step"], p[figure]) for p in points], marks=False)
                for line, points in lines.items()
            ]
            title = f"{text}{name}"
            drawn = plot(title, series, x="step", y=text.lower())
            if drawn:
                blocks.append(Drawing(_slug(title), drawn, f"{title}, seed {seed}."))
    return [Heading("On the way"), *blocks] if blocks else []


def _other_networks(figures: Mapping[str, Any]) -> list[Block]:
    names = list(dict.fromkeys(r["architecture"] for r in figures["table"] if r["architecture"]))
    if len(names) < 2:
        return []
    groups: dict[tuple[str, int | None], dict[str, str]] = {}
    for row in figures["table"]:
        if row["networks"]:
            key = (row["label"], row["images_per_class"])
            groups.setdefault(key, {})[row["architecture"]] = mean_sd(row["balanced_accuracy"])
    ours = {r["label"] for r in figures["table"] if r["kind"] in ("distilled", "best")}
    lines = [
        [label, "all" if size is None else str(size), *(by.get(name, "") for name in names)]
        for (label, size), by in groups.items()
        if len(by) > 1 or size is None
    ]
    bold = frozenset(n for n, line in enumerate(lines) if line[0] in ours)
    return [
        Heading("Other networks"),
        Paragraph(
            f"Balanced accuracy of networks that the images were not distilled for. On them the step size is chosen on "
            f"validation; {names[0]} is the network of the teachers."
        ),
        Table(["trained on", "IPC", *names], lines, bold),
    ]


# ----------------------------------------------------------------------------------------- cells


def _cells(figures: Mapping[str, Any]) -> list[Block]:
    lines = []
    for one in figures["cells"]:
        found = one["result"]
        lines.append(
            [
                one["label"].removeprefix("distilled, "),
                str(one["images_per_class"]),
                str(one["seed"]),
                *(
                    [
                        f"{found['seconds']:,.0f}",
                        f"{found['learning_rate']:.4f}",
                        f"{found['matching_loss']:.3f}",
                        f"{found['pruned']:.2%}",
                        str(found["rollbacks"]),
                        bytes_text(found["bytes"]),
                    ]
                    if found
                    else ["–"] * 6
                ),
            ]
        )
    head = [
        "distilled",
        "IPC",
        "seed",
        "seconds",
        "learned α",
        "matching loss",
        "pruned",
        "rollbacks",
        "size",
    ]
    return [
        Heading("Every distillation"),
        Paragraph("Matching loss and pruned share are means over the last tenth of the steps."),
        Table(head, lines),
    ]


def _estimates(figures: Mapping[str, Any]) -> list[Block]:
    """Compare what `ppdd estimate` said before with what it took."""
    lines, ratios = [], []
    for what, found in (("distillation", figures["cells"]), ("teachers", figures["teachers"])):
        groups: dict[str, list[tuple[float, float]]] = {}
        for one in found:
            taken = one["seconds"] if what == "teachers" else (one["result"] or {}).get("seconds")
            if taken and one["estimated_seconds"]:
                name = what if what == "teachers" else f"{what}, IPC {one['images_per_class']}"
                groups.setdefault(name, []).append((one["estimated_seconds"], taken))
        for name, pairs in groups.items():
            of = [taken / estimated for estimated, taken in pairs]
            ratios += of
            lines.append(
                [
                    name,
                    str(len(pairs)),
                    f"{statistics.fmean(e for e, _ in pairs):,.1f}",
                    f"{statistics.fmean(t for _, t in pairs):,.1f}",
                    f"{statistics.fmean(of):.2f}",
                    f"{min(of):.2f} – {max(of):.2f}",
                ]
            )
    if not lines:
        return []
    middle = statistics.median(ratios)
    return [
        Heading("Estimate against what it took"),
        Paragraph(
            f"It took {middle:.2f} times what was estimated (median of {len(ratios)}; from {min(ratios):.2f} to "
            f"{max(ratios):.2f}). Estimated by ppdd estimate before, on a machine doing nothing else, with as many "
            "threads; measured beside whatever else ran. Teachers: seconds of one after the other."
        ),
        Table(
            ["what", "runs", "estimated s", "took s", "ratio", "range"],
            lines,
        ),
    ]


def _sheets(plan: Plan, out: Path, seed: int, figures: Mapping[str, Any]) -> list[Block]:
    found = sheets(plan, out, seed=seed)
    if not found:
        return []
    each = max(1, min(STEPS_SHOWN, MOST_SHEETS // len(found)))
    classes: list[str] = next((c["result"]["classes"] for c in figures["cells"] if c["result"]), [])
    names = f": {', '.join(classes)}" if classes else ""
    blocks: list[Block] = [
        Heading("Distilled images on the way"),
        Paragraph(f"Seed {seed}; the first images of every class, a row per class{names}."),
    ]
    for per_class, label, drawn in sorted(found, key=lambda one: one[0]):
        title = f"IPC {per_class}, {label}"
        pictures = [
            Picture(_slug(f"{title} step {step}"), file.read_bytes(), f"step {step:,}")
            for step, file in _spread(drawn, each)
        ]
        blocks.append(Strip(title, pictures))
    return blocks


def _spread(drawn: Sequence[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """Return about `count` of the pictures, the last one among them, the first one too if there is room."""
    if count >= len(drawn) or count == 1:
        return list(drawn[-count:])
    places = {round(n * (len(drawn) - 1) / (count - 1)) for n in range(count)}
    return [drawn[place] for place in sorted(places)]


def _slug(text: str) -> str:
    text = text.replace("σ", "sigma")
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")

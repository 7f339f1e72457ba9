"""Evidence: distil real chest X-rays with one preset, several seeds; distilled against random real and full data.

    python benchmarks/evidence.py --data cxr4-112.zip --where hospital=a --ipc 1 --ipc 5 --seeds 3

Per seed: one split into train and validation, one set of teachers, one distillation per images-per-class and σ, then
one evaluation of all of them on the test split, by the code that `ppdd distill` runs. Nothing is chosen here. The table
gives mean ± sample sd over all networks of all seeds. Resumable: run the same command again. Writes JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ppdd_core.cli.distill import METHODS, mean_sd, stage_bars
from ppdd_core.data.files import json_bytes, write_atomically
from ppdd_core.pipeline import Source, distil_set, evaluate, load_split, method, pick_device, teach
from ppdd_core.presets import preset

FIGURES = ("accuracy", "balanced_accuracy", "macro_auroc", "calibration_error")
EVERYTHING = 10**6  # sorts after every number of images per class
console = Console(stderr=True)


def main() -> None:
    """Run what is missing and write the report."""
    arguments = _arguments()
    where = dict(pair.split("=", 1) for pair in arguments.where)
    only = [arguments.only] if arguments.only is not None else range(arguments.seeds)
    runs = []
    for seed in only:
        console.print(f"seed {seed}", style="bold")
        runs.append(_run(arguments, where, seed))
    if arguments.only is not None:
        return
    report = {
        "command": arguments.command,
        "commit": _commit(),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, torch {torch.__version__}",
        "preset": arguments.preset,
        "settings": arguments.set,
        "where": where,
        "seeds": arguments.seeds,
        "summary": _summary(runs),
        "runs": runs,
    }
    write_atomically(arguments.results.with_suffix(".json"), json_bytes(report))
    write_atomically(arguments.results.with_suffix(".md"), _markdown(report).encode())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--where", action="append", default=[], metavar="COL=VALUE")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--ipc", type=int, action="append", required=True)
    parser.add_argument("--sigma", type=float, action="append", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--only", type=int, help="run this seed alone and write no report: for side by side"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--results", type=Path, default=Path("docs/results/first-evidence"))
    arguments = parser.parse_args()
    arguments.sigma = arguments.sigma or [0.1]
    given = " ".join(
        [f"--where {w}" for w in arguments.where]
        + [f"--set {s}" for s in arguments.set]
        + [f"--ipc {i}" for i in arguments.ipc]
        + [f"--sigma {s:g}" for s in arguments.sigma]
    )
    arguments.command = (
        f"python benchmarks/evidence.py --data {arguments.data.name} --preset {arguments.preset} {given} "
        f"--seeds {arguments.seeds}"
    )
    return arguments


def _run(arguments: argparse.Namespace, where: dict[str, str], seed: int) -> dict[str, Any]:
    """Return one seed's report: teachers, every distillation on them, one evaluation of all."""
    kept = arguments.runs / f"seed{seed}" / "report.json"
    if kept.exists():
        report: dict[str, Any] = json.loads(kept.read_bytes())
        return report
    settings = {"seed": seed, **dict(pair.split("=", 1) for pair in arguments.set)}
    device, seconds = pick_device("auto"), {}
    with stage_bars() as show:
        first = preset(arguments.preset, max(arguments.ipc)).override(settings)
        images = load_split(Source(path=arguments.data, where=where), first, on_progress=show)
        images.findings.refuse_errors()
        began = time.perf_counter()
        store = teach(images, first, kept.parent / "teachers", device=device, on_progress=show)
        seconds["teachers"] = round(time.perf_counter() - began)
        sets, distillations = [], []
        for ipc in arguments.ipc:
            for sigma in arguments.sigma:
                recipe = preset(arguments.preset, ipc).override(
                    {**settings, "distill.prune_below": sigma}
                )
                folder = kept.parent / f"ipc{ipc}-sigma{sigma:g}"
                began = time.perf_counter()
                distilled = distil_set(
                    images, recipe, store, folder, device=device, on_progress=show
                )
                taken = round(time.perf_counter() - began)
                sets.append((method(recipe), distilled))
                distillations.append(
                    {"images_per_class": ipc, "sigma": sigma, "seconds": taken}
                    | {"learning_rate": distilled.learning_rate}
                    | _end_of(folder / "history.jsonl")
                )
        began = time.perf_counter()
        evaluation = evaluate(images, first, sets, device=device, on_progress=show)
        seconds["evaluation"] = round(time.perf_counter() - began)
    report = {
        "seed": seed,
        "seconds": seconds,
        "train_images": len(images.split.train),
        "validation_images": len(images.split.validation),
        "distillations": distillations,
        "evaluation": evaluation,
    }
    write_atomically(kept, json_bytes(report))
    return report


def _end_of(history: Path) -> dict[str, Any]:
    """Return means over the last tenth of the steps."""
    steps = [json.loads(line) for line in history.read_text().splitlines()]
    last = steps[-max(1, len(steps) // 10) :]
    return {
        "matching_loss": round(statistics.fmean(step["loss"] for step in last), 4),
        "pruned": round(statistics.fmean(step["pruned"] for step in last), 4),
        "rollbacks": steps[-1]["rollbacks"],
    }


def _summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and sample sd over all networks of all seeds, per method and images per class."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for run in runs:
        for entry in run["evaluation"]["results"]:
            size = entry["images_per_class"] or EVERYTHING
            groups.setdefault((size, entry["method"]), []).append(entry)
    return [
        {
            "method": name,
            "images_per_class": None if size == EVERYTHING else size,
            "networks": len(entries),
            **{figure: _mean_sd([entry[figure] for entry in entries]) for figure in FIGURES},
        }
        for (size, name), entries in sorted(groups.items())
    ]


def _mean_sd(values: list[float]) -> dict[str, float | None]:
    spread = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {"mean": round(statistics.fmean(values), 4), "sd": spread}


def _markdown(report: dict[str, Any]) -> str:
    runs = report["runs"]
    tested = runs[0]["evaluation"]["images"]
    lines = [
        "# First evidence: distilled against random real images and all real images",
        "",
        f"`{report['command']}`",
        "",
        f"Commit {report['commit']}; {report['machine']}; preset `{report['preset']}`; {report['seeds']} seeds, "
        "each with its own train/validation split, teachers, distillations and networks; "
        f"{tested:,} test images, looked at once per finished network. "
        "Mean ± sample standard deviation over all networks of all seeds.",
        "",
        "| trained on | images per class | networks | accuracy | balanced accuracy | macro AUROC | calibration error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["summary"]:
        cells = [mean_sd(row[name]) for name in FIGURES]
        size = row["images_per_class"] or "all"
        lines.append(
            f"| {METHODS[row['method']]} | {size} | {row['networks']} | " + " | ".join(cells) + " |"
        )
    lines += [
        "",
        "| seed | images per class | σ | seconds | learned α | matching loss | pruned | rollbacks |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {run['seed']} | {d['images_per_class']} | {d['sigma']:g} | {d['seconds']} | {d['learning_rate']:.4f} | "
        f"{d['matching_loss']:.3f} | {d['pruned']:.2%} | {d['rollbacks']} |"
        for run in runs
        for d in run["distillations"]
    ]
    teaching = ", ".join(str(run["seconds"]["teachers"]) for run in runs)
    lines += [
        "",
        f"Seconds of the teachers, by seed: {teaching}. Other work ran on the machine.",
        "",
    ]
    return "\n".join(lines)


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()

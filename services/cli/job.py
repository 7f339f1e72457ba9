"""`ppdd job`: ask a node for work, watch it, stop it, go on with it."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ppdd_core.cli.console import JsonOption, emit, err, parse_pairs, remark
from ppdd_core.errors import BadConfigError
from services.cli.program import Commands
from services.cli.remote import known_node
from services.cli.watch import watch

app = Commands(
    help="Work that a node does: distil, check, train, evaluate, predict.", no_args_is_help=True
)

IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}

NodeOption = Annotated[
    str | None,
    typer.Option("--node", metavar="URL", help="Another node than that of `ppdd login`."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Stay and show its progress.")]
DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="Name or id of a source dataset of the node.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any recipe field, e.g. distill.iterations=500."
    ),
]
PresetOption = Annotated[
    str, typer.Option("--preset", help="Starting point: quick, small, paper, fast.")
]
IpcOption = Annotated[int, typer.Option(help="Distilled images per class.")]
SeedOption = Annotated[int, typer.Option(help="Decides every random choice.")]
ReleasedOption = Annotated[
    list[str] | None,
    typer.Option("--purpose", help="Allowed purpose as a DUO code; may be repeated."),
]


@app.command()
def submit(
    dataset: DatasetArgument,
    name: Annotated[str, typer.Option(help="Name of the package, without the site.")],
    ipc: IpcOption,
    version: Annotated[
        str, typer.Option(help="Version of the package (semantic versioning).")
    ] = "0.1.0",
    preset: PresetOption = "quick",
    settings: SetOption = None,
    seed: SeedOption = 0,
    licence: Annotated[
        str, typer.Option(help="Licence of the package (SPDX id or own words).")
    ] = "all rights reserved",
    purpose: ReleasedOption = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Idempotency key: the same key makes one job."),
    ] = None,
    wait: WaitOption = True,
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Distil a dataset of the node into a draft package."""
    body = _work(dataset, preset, ipc, seed, settings) | {
        "kind": "distill",
        "package": {
            "name": name,
            "version": version,
            "licence": licence,
            "purposes": purpose or ["DUO:0000042"],
        },
    }
    _start("/jobs", body, wait=wait, node_url=node_url, as_json=as_json, key=key)


@app.command()
def estimate(
    dataset: DatasetArgument, ipc: IpcOption, preset: PresetOption = "quick", settings: SetOption = None,
    seed: SeedOption = 0, node_url: NodeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Say what a distillation would take on the node: time, memory, disk, package size."""
    body = _work(dataset, preset, ipc, seed, settings)
    _start("/jobs/estimate", body, wait=True, node_url=node_url, as_json=as_json)


@app.command()
def check(
    dataset: DatasetArgument,
    image_size: Annotated[int, typer.Option(min=8, max=512, help="Side of the squares that images become.")] = 112,
    wait: WaitOption = True, node_url: NodeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Look at every image of a dataset, count classes and patients, and find what is wrong with it."""
    body = {"kind": "check", "dataset": dataset, "image_size": image_size}
    _start("/jobs", body, wait=wait, node_url=node_url, as_json=as_json)


@app.command()
def train(
    packages: Annotated[list[str], typer.Argument(metavar="SITE/NAME@VERSION…", help="Packages that the node holds.")],
    name: Annotated[str, typer.Option(help="Name of the detector.")],
    local: Annotated[str | None, typer.Option(metavar="DATASET", help="Local images that join in.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Default: as the first package was evaluated.")] = None,
    seed: SeedOption = 0, wait: WaitOption = True, node_url: NodeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Train a detector from packages."""
    body: dict[str, Any] = {"name": name, "packages": packages, "seed": seed}
    body |= {} if local is None else {"local_dataset": local}
    body |= {} if epochs is None else {"epochs": epochs}
    _start("/detectors", body, wait=wait, node_url=node_url, as_json=as_json)


@app.command()
def evaluate(
    detector: Annotated[str, typer.Argument(metavar="DETECTOR", help="Name or id of a detector of the node.")],
    data: Annotated[str, typer.Option(metavar="DATASET", help="Name or id of a source dataset.")],
    split: Annotated[str, typer.Option(help="`test`: patients held out; `all`: every image.")] = "test",
    wait: WaitOption = True, node_url: NodeOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Measure a detector on local images."""
    with known_node(node_url) as node:
        found = find_detector(node.rows("/detectors"), detector)
    path = f"/detectors/{found['id']}/evaluations"
    _start(path, {"dataset": data, "split": split}, wait=wait, node_url=node_url, as_json=as_json)


@app.command()
def predict(
    detector: Annotated[
        str, typer.Argument(metavar="DETECTOR", help="Name or id of a detector of the node.")
    ],
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="PNG, JPEG or DICOM file.")],
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how probable each class is for one image. Research use only, not for diagnosis."""
    with known_node(node_url) as node, image.open("rb") as file:
        found = find_detector(node.rows("/detectors"), detector)
        media_type = IMAGE_TYPES.get(image.suffix.lower(), "application/dicom")
        answer = node.send(
            f"/detectors/{found['id']}/predictions",
            file,
            media_type=media_type,
            headers={"Prefer": "wait=50"},
        )
        if "probabilities" not in answer:
            answer = watch(node, answer["job_id"])["result"]
    table = Table(
        "class", "probability", title=answer["use"], title_justify="left", title_style="bold yellow"
    )
    for name, value in sorted(answer["probabilities"].items(), key=lambda row: -row[1]):
        table.add_row(Text(name), f"{value:.1%}")
    emit(answer, as_json=as_json, render=table)


@app.command("list")
def list_jobs(
    state: Annotated[
        str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="check, distill, pull, train, evaluate, predict or estimate.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, newest first.")] = 20,
    node_url: NodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the node's jobs, newest first."""
    with known_node(node_url) as node:
        page = node.get("/jobs", state=state, kind=kind, limit=limit)
    table = Table("job", "kind", "state", "what", "progress", "made")
    for row in page["items"]:
        progress = row["progress"] or {}
        where = (
            f"{progress.get('stage', '')} {progress.get('done', 0):g}/{progress.get('total', 0):g}"
            if progress
            else ""
        )
        table.add_row(
            row["id"],
            row["kind"],
            row["state"],
            Text(row["title"]),
            where,
            row["created_at"][:16].replace("T", " "),
        )
    emit(page, as_json=as_json, render=table)


@app.command()
def show(job_id: JobId, node_url: NodeOption = None, as_json: JsonOption = False) -> None:
    """Show one job: its attempts, estimate against actual, result or error."""
    with known_node(node_url) as node:
        job = node.get(f"/jobs/{job_id}")
    emit(job, as_json=as_json, render=describe(job))


@app.command()
def wait(job_id: JobId, node_url: NodeOption = None, as_json: JsonOption = False) -> None:
    """Wait for a job, with its progress. Ctrl-C leaves it running. Exit code 1 if it does not succeed."""
    with known_node(node_url) as node:
        job = watch(node, job_id)
    emit(job, as_json=as_json, render=describe(job))


@app.command()
def log(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
    node_url: NodeOption = None,
) -> None:
    """Print what a job wrote."""
    with known_node(node_url) as node, contextlib.suppress(KeyboardInterrupt):
        after = 0
        while True:
            ended = node.get(f"/jobs/{job_id}")["state"] in ("succeeded", "failed", "cancelled")
            page = node.get(
                f"/jobs/{job_id}/log", headers={"Accept": "application/json"}, after=after
            )
            for line in page["items"]:
                typer.echo(
                    f"{line['at'][:19].replace('T', ' ')} [{line['attempt']}] {line['text']}"
                )
                after = line["id"]
            if not page["items"] and (ended or not follow):
                return
            if not page["items"]:
                time.sleep(1.0)


@app.command()
def cancel(job_id: JobId, node_url: NodeOption = None, as_json: JsonOption = False) -> None:
    """Ask a job to stop. What it has so far is kept: `ppdd job resume` goes on."""
    with known_node(node_url) as node:
        job = node.post(f"/jobs/{job_id}/cancel")
    emit(
        job,
        as_json=as_json,
        render=Text("asked to stop" if job["state"] == "running" else job["state"]),
    )


@app.command()
def resume(
    job_id: JobId, wait: WaitOption = True, node_url: NodeOption = None, as_json: JsonOption = False
) -> None:
    """Go on with a failed or cancelled job from what it kept."""
    with known_node(node_url) as node:
        job = node.post(f"/jobs/{job_id}/resume")
        if wait:
            job = watch(node, job_id)
    emit(job, as_json=as_json, render=describe(job))


# ------------------------------------------------------------------------------------------ shared


def find_detector(rows: Any, wanted: str) -> dict[str, Any]:
    """Return the detector of this name or id; BadConfigError where the node has none."""
    for row in rows:
        if wanted in (row["name"], row["id"]):
            return dict(row)
    raise BadConfigError(f"the node has no detector {wanted!r}")


def describe(job: dict[str, Any]) -> RenderableType:
    """Return a job as a table for people."""
    table = Table(show_header=False, title=f"{job['title']} ({job['state']})", title_justify="left")
    table.add_row("job", job["id"])
    if job["dataset"]:
        table.add_row("dataset", Text(job["dataset"]))
    for attempt in job.get("history", []):
        ended = attempt["outcome"] or "works"
        table.add_row(
            f"attempt {attempt['number']}",
            Text(
                f"{ended} on {attempt['worker']}"
                + (f": {attempt['detail']}" if attempt["detail"] else "")
            ),
        )
    expected = (job.get("estimate") or {}).get("seconds") or {}
    taken = (job.get("actual") or {}).get("seconds") or {}
    for stage in dict.fromkeys([*expected, *taken]):
        parts = [
            f"{name} {of[stage]:.0f} s"
            for name, of in (("estimated", expected), ("took", taken))
            if stage in of
        ]
        table.add_row(stage, ", ".join(parts))
    for name, value in (job.get("result") or {}).items():
        if isinstance(value, str | int | float | bool):
            table.add_row(
                name.replace("_", " "),
                Text(f"{value:.4g}" if isinstance(value, float) else str(value)),
            )
    if job.get("error"):
        table.add_row("error", Text(job["error"]["detail"], style="red"))
    return table


def _work(
    dataset: str, preset: str, ipc: int, seed: int, settings: list[str] | None
) -> dict[str, Any]:
    return {
        "dataset": dataset, "preset": preset, "images_per_class": ipc, "seed": seed,
        "settings": {name: _number(value) for name, value in parse_pairs("--set", settings or []).items()},
    }  # fmt: skip


def _number(text: str) -> str | int | float:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def _start(
    path: str,
    body: dict[str, Any],
    *,
    wait: bool,
    node_url: str | None,
    as_json: bool,
    key: str | None = None,
) -> None:
    with known_node(node_url) as node:
        made = node.post(path, body, headers={"Idempotency-Key": key} if key else None)
        job_id = made.get("job_id") or made["id"]
        if wait:
            remark(f"job {job_id}") if not err.is_terminal else None
            job = watch(node, job_id)
        else:
            job = node.get(f"/jobs/{job_id}")
    render = (
        describe(job)
        if wait
        else Text(f"queued as job {job_id}; see it with: ppdd job wait {job_id}")
    )
    emit(job, as_json=as_json, render=render)
